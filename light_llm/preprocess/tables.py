"""Tables as streams of documents, one a row: parquet, CSV and TSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from light_llm.errors import UserError
from light_llm.files.parquet import opened
from light_llm.files.remotefile import InputFile
from light_llm.preprocess.kinds import kind_of_binary, remedy
from light_llm.preprocess.opening import (
    LONGEST_LINE,
    Reading,
    decompressing,
    open_bytes,
    printable,
    size_of,
)
from light_llm.preprocess.rows import A_STRING, RowText, bounded

if TYPE_CHECKING:
    import pyarrow as pa

DELIMITERS = {".csv": ",", ".tsv": "\t"}
BATCH = 256
"""Most parquet rows that are read at once."""

Rows = Iterator[tuple[str, str]]
"""Of each document `path:row`, from 0, and its text."""


def read_parquet(
    path: InputFile, rows: RowText, reading: Reading | None = None, start: int = 0
) -> Rows:
    """A text per row, from row `start` on; null counts as an empty one."""
    source = printable(path)
    with opened(path) as parquet:
        schema = parquet.file.schema_arrow
        column = rows.field(schema.names, source)
        if column is not None:
            _check_once(schema.names, column, source)
            kind = schema.field(column).type
            if not _is_text(kind):
                raise UserError(f"{source}: {column!r} is of type {kind}; {A_STRING}")
        row = start
        if reading is not None:
            number, length = parquet.file.metadata.num_rows, size_of(path)
            reading.place = lambda: length * row // max(1, number)
        for batch in parquet.batches(column, BATCH, start=start):
            values = batch.to_pylist() if column is None else batch.column(column).to_pylist()
            for value in values:
                where = f"{source}:{row}"
                text = value or "" if column is not None else rows.text(value, where)
                yield where, bounded(text, where)
                row += 1


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column holds strings, in whichever of Arrow's ways, or nulls alone, as where every
    text of a file is missing."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    return any(test(kind) for test in tests)


def _check_once(names: list[str], column: str, source: str) -> None:
    if names.count(column) > 1:
        raise UserError(
            f"{source}: has {names.count(column)} columns {column!r}; rename all but one of them"
        )


def read_csv(
    path: InputFile, rows: RowText, delimiter: str, reading: Reading | None = None
) -> Rows:
    """A text per row below the header, quoted as RFC 4180 has it.

    Raises:
        UserError: not UTF-8, no header with the text's column, a quote that is not closed, or a row
            with more or fewer fields than the header; names the line.
    """
    source = printable(path)
    csv.field_size_limit(LONGEST_LINE)
    with io.TextIOWrapper(open_bytes(path, reading), "utf-8-sig", newline="") as stream:
        reader = csv.reader(_lines(stream, path), delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            try:
                column = rows.field(header, source)
            except UserError as error:
                raise UserError(f"{error}{_other_delimiter(header)}") from None
            if column is not None:
                _check_once(header, column, source)
            for number, fields in enumerate(filter(None, reader)):
                where = f"{source}:{number}"
                if len(fields) != len(header):
                    raise UserError(
                        f"{where}: the row that ends in line {reader.line_num} has {len(fields)} "
                        f"fields, and the header {len(header)}; write the file again, with quotes "
                        "around fields that hold line ends, quotes or the delimiter"
                    )
                yield where, rows.text(dict(zip(header, fields, strict=True)), where)
        except (csv.Error, UnicodeDecodeError) as error:
            encoded = isinstance(error, UnicodeDecodeError)
            mend = remedy(kind_of_binary(path, encoded)) or "mend it"
            raise UserError(
                f"{source}: is not a table in UTF-8 that can be read, after line "
                f"{reader.line_num}: {error}; {mend}, or leave it out with --exclude"
            ) from None


def _other_delimiter(header: list[str]) -> str:
    """What to add to a message where the header is in one piece."""
    if len(header) == 1 and any(mark in header[0] for mark in ",;|\t"):
        return (
            ". The columns of a .csv are parted by commas, those of a .tsv by tabs; write the file "
            "again with these"
        )
    return ""


def _lines(stream: io.TextIOWrapper, path: InputFile) -> Iterator[str]:
    """The lines.

    Raises:
        csv.Error: one is too long.
    """
    while True:
        with decompressing(path):
            line = stream.readline(LONGEST_LINE + 1)
        if not line:
            return
        if len(line) > LONGEST_LINE:
            raise csv.Error(f"a line has more than {LONGEST_LINE:,} characters")
        yield line
