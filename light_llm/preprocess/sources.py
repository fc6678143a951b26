"""Files of text, JSON lines and parquet, each as a stream of documents.

Text and JSON lines may be compressed: `.gz` and `.zst` are taken off, and the ending before says
what the file is. No more of a file is decompressed at a time than of a plain one is read.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from light_llm.errors import UserError
from light_llm.files import given
from light_llm.files.parquet import opened
from light_llm.preprocess.rows import RowText, bounded

if TYPE_CHECKING:
    import pyarrow as pa

JSON_LINES = ".jsonl"
COMPRESSIONS = (".gz", ".zst")
PIECE_CHARS = 2**20
LONGEST_LINE = 64 * 2**20
"""Bytes: a small compressed file can hold a line of any length, and a line is read at once."""
BATCH = 256
BATCH_BYTES = 2**30
"""Most parquet rows, and most bytes, that are read at once."""


@dataclass(frozen=True)
class Document:
    source: str
    """The path as it was given; `path:line` (from 1) in JSON lines, `path:row` (from 0) in
    parquet, `path:piece` (from 0) in a text file that is too large for one document."""
    text: str


def printable(path: Path) -> str:
    """The path as valid UTF-8 text, for any bytes in the file system."""
    return os.fsencode(path).decode("utf-8", "replace")


def has_rows(path: Path) -> bool:
    """Whether `read_file` reads it as rows with columns."""
    return _uncompressed(path).endswith((JSON_LINES, ".parquet"))


def is_compressed(path: Path) -> bool:
    return path.name.lower().endswith(COMPRESSIONS)


def _uncompressed(path: Path) -> str:
    """The name in lower case, without the ending of a compression."""
    name = path.name.lower()
    return name.removesuffix(next(filter(name.endswith, COMPRESSIONS), ""))


def read_file(path: Path, rows: RowText, reading: Reading | None = None) -> Iterator[Document]:
    """The documents of a file, read by its ending.

    Args:
        reading: is told the place in the file.

    Raises:
        NotText: a text file holds something else; raised before its first document.
        UserError: it cannot be read, or does not match its ending; names the line or row.
    """
    name = _uncompressed(path)
    try:
        if name.endswith(JSON_LINES):
            yield from read_json_lines(path, rows, reading)
        elif name.endswith(".parquet"):
            if is_compressed(path):
                raise UserError(
                    f"{path}: a parquet file cannot be read while it is compressed as a whole; "
                    "decompress it, or leave it out with --exclude"
                )
            yield from read_parquet(path, rows, reading)
        else:
            yield from read_text(path, reading=reading)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


@dataclass
class Reading:
    """How far files of `total` bytes are read."""

    total: int
    finished: int = 0
    """Bytes of the files that are done."""
    place: Callable[[], int] = int
    """Bytes of the present one that were read."""

    def share(self) -> float | None:
        """0 to 1, if there is anything to read."""
        done = self.finished + self.place()
        return min(1.0, done / self.total) if self.total else None

    def end(self, size: int) -> None:
        """The present file, of `size` bytes, is done."""
        self.place = int
        self.finished += size


class NotText(Exception):
    """A file that does not hold UTF-8 text."""


def read_text(
    path: Path, piece_chars: int = PIECE_CHARS, reading: Reading | None = None
) -> Iterator[Document]:
    """One document; a file beyond `piece_chars` bytes, decompressed, comes in pieces of about that
    many characters, cut at line ends.

    This saves memory: a working tokenizer holds 400 bytes per token of a document.

    Raises:
        NotText: raised before the first document, even if the reason is at the file's end.
        UserError: it cannot be decompressed to its end; likewise before the first document.
    """
    source = printable(path)
    if _is_short(path, piece_chars):
        yield Document(source, "".join(_pieces(path, piece_chars)))
        return
    for _ in _pieces(path, piece_chars):
        pass
    for number, text in enumerate(_pieces(path, piece_chars, reading)):
        yield Document(f"{source}:{number}", text)


def _is_short(path: Path, limit: int) -> bool:
    """Whether the file, decompressed, has at most `limit` bytes."""
    if not is_compressed(path):
        return path.stat().st_size <= limit
    with _decompressing(path), _open(path) as stream:
        return len(stream.read(limit + 1)) <= limit


def _pieces(path: Path, piece_chars: int, reading: Reading | None = None) -> Iterator[str]:
    try:
        # line ends stay as they are
        with io.TextIOWrapper(_open(path, reading), "utf-8-sig", newline="") as stream:
            while True:
                with _decompressing(path):
                    piece = stream.read(piece_chars) + stream.readline(piece_chars)
                if not piece:
                    return
                if "\0" in piece:
                    raise NotText("it holds a zero byte")
                yield piece
    except UnicodeDecodeError as error:
        raise NotText(f"byte 0x{error.object[error.start]:02x}: {error.reason}") from None


def read_json_lines(
    path: Path, rows: RowText, reading: Reading | None = None
) -> Iterator[Document]:
    """A document per line that is not blank; null counts as an empty one."""
    source = printable(path)
    with _open(path, reading) as stream:
        for number in itertools.count(1):
            with _decompressing(path):
                line = stream.readline(LONGEST_LINE + 1)
            if not line:
                return
            where = f"{source}:{number}"
            if len(line) > LONGEST_LINE:
                raise UserError(
                    f"{where}: the line has more than {LONGEST_LINE:,} bytes, which is the limit "
                    "for one; cut its text into several documents"
                )
            if line.strip():
                yield Document(where, rows.text(_row(line, where), where))


def _open(path: Path, reading: Reading | None = None) -> IO[bytes]:
    """The bytes of the file, decompressed as they are read."""
    name = path.name.lower()
    raw = given.open_regular(path)
    if reading is not None:
        reading.place = raw.tell
    if name.endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw, mode="rb"))  # type: ignore[arg-type]
    if name.endswith(".zst"):
        import pyarrow as pa

        if not pa.Codec.is_available("zstd"):
            raise UserError(f"{path}: this build of pyarrow has no zstd; recompress it with gzip")
        return io.BufferedReader(pa.input_stream(raw, compression="zstd"))
    return raw


@contextlib.contextmanager
def _decompressing(path: Path) -> Iterator[None]:
    """Around each reading of a file that may be compressed.

    Raises:
        UserError: its bytes are not what its ending says, are damaged, or end too soon.
    """
    try:
        yield
    except (EOFError, zlib.error, OSError) as error:
        if not is_compressed(path):
            raise
        raise UserError(
            f"{printable(path)}: cannot be decompressed: {error}; get a whole copy of it, or leave "
            "it out"
        ) from None


def _row(line: bytes, where: str) -> dict:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (
        ValueError,
        RecursionError,
    ) as error:  # the latter: thousands of nested brackets
        raise UserError(f"{where}: is not a line of JSON in UTF-8: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: is JSON, but not an object with the text in it")
    return row


def read_parquet(path: Path, rows: RowText, reading: Reading | None = None) -> Iterator[Document]:
    """A document per row; null counts as an empty one."""
    import pyarrow as pa

    source = printable(path)
    try:
        with opened(path) as parquet:
            schema = parquet.file.schema_arrow
            column = rows.field(schema.names, source)
            if column is not None:
                if schema.names.count(column) > 1:
                    raise UserError(
                        f"{source}: has {schema.names.count(column)} columns {column!r}; rename "
                        "all but one of them"
                    )
                kind = schema.field(column).type
                if not _is_text(kind):
                    raise UserError(f"{source}: {column!r} is of type {kind}; it must be a string")
            row = 0
            if reading is not None:
                number, length = parquet.file.metadata.num_rows, path.stat().st_size
                reading.place = lambda: length * row // max(1, number)
            size = max(1, min(BATCH, BATCH_BYTES // max(1, parquet.longest)))
            for batch in parquet.file.iter_batches(batch_size=size, columns=column and [column]):
                values = batch.to_pylist() if column is None else batch.column(column).to_pylist()
                for value in values:
                    where = f"{source}:{row}"
                    text = value or "" if column is not None else rows.text(value, where)
                    yield Document(where, bounded(text, where))
                    row += 1
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{source}: is not a parquet file that can be read: {error}") from None


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column holds strings, in whichever of Arrow's ways."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
