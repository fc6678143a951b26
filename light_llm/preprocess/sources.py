"""Where documents come from: files of text, JSON lines and parquet."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from light_llm.errors import UserError
from light_llm.preprocess.files import SourceFile

JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
PIECE_CHARS = 8 * 2**20


@dataclass(frozen=True)
class Document:
    source: str
    """The path as it was given; `path:line` (from 1) in JSON lines, `path:row` (from 0) in
    parquet, `path:piece` (from 0) in a text file that is too large for one document."""
    text: str


@dataclass
class Corpus:
    """The usable documents of `files`, in order; iterate as often as needed.

    Raises while iterating:
        UserError: a file cannot be read or is not what its ending says; names the line or row.
    """

    files: Sequence[SourceFile]
    text_column: str = "text"
    min_length: int = 1
    empty: int = field(default=0, init=False)
    short: int = field(default=0, init=False)
    binary: list[Path] = field(default_factory=list, init=False)

    def __iter__(self) -> Iterator[Document]:
        """Counts what it skips, afresh each time: `empty`, `short` documents, `binary` files."""
        self.empty = self.short = 0
        self.binary = []
        for file in self.files:
            for document in self._read(file):
                if not document.text or document.text.isspace():
                    self.empty += 1
                elif len(document.text) < self.min_length:
                    self.short += 1
                else:
                    yield document

    def _read(self, file: SourceFile) -> Iterator[Document]:
        name = file.path.name.lower()
        try:
            if name.endswith(JSON_LINES):
                yield from read_json_lines(file.path, self.text_column)
            elif name.endswith(".parquet"):
                yield from read_parquet(file.path, self.text_column)
            else:
                yield from read_text(file.path)
        except NotText as error:
            if file.named:
                raise UserError(
                    f"{file.path}: is not UTF-8 text ({error}); convert it, for instance with "
                    f"`iconv -t utf-8`, or leave it out"
                ) from None
            self.binary.append(file.path)
        except OSError as error:
            raise UserError(f"{file.path}: cannot be read: {error.strerror or error}") from None


class NotText(Exception):
    """A file that holds something else than UTF-8 text."""


def read_text(path: Path, piece_chars: int = PIECE_CHARS) -> Iterator[Document]:
    """One document; a file beyond `piece_chars` comes in pieces of about that, cut at line ends.

    Memory is the reason: while it works, a tokenizer holds 400 bytes per token of a document.

    Raises:
        NotText: before the first document, wherever in the file the reason is.
    """
    if path.stat().st_size <= piece_chars:
        yield Document(str(path), "".join(_pieces(path, piece_chars)))
        return
    for _ in _pieces(path, piece_chars):
        pass
    for number, text in enumerate(_pieces(path, piece_chars)):
        yield Document(f"{path}:{number}", text)


def _pieces(path: Path, piece_chars: int) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:  # line ends stay as they are
            while piece := stream.read(piece_chars) + stream.readline(piece_chars):
                if "\0" in piece:
                    raise NotText("it holds a zero byte")
                yield piece
    except UnicodeDecodeError as error:
        raise NotText(f"byte 0x{error.object[error.start]:02x}: {error.reason}") from None


def read_json_lines(path: Path, column: str) -> Iterator[Document]:
    """A document per line that is not blank; null counts as an empty one."""
    with _open_lines(path) as stream:
        lines = enumerate(stream, start=1)
        while True:
            try:
                number, line = next(lines)
            except StopIteration:
                return
            except (EOFError, zlib.error, OSError) as error:
                raise UserError(f"{path}: cannot be decompressed: {error}") from None
            if line.strip():
                yield Document(f"{path}:{number}", _field(line, column, f"{path}:{number}"))


def _open_lines(path: Path) -> IO[bytes] | gzip.GzipFile:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rb")
    if path.name.lower().endswith(".zst"):
        import pyarrow as pa

        if not pa.Codec.is_available("zstd"):
            raise UserError(f"{path}: this build of pyarrow has no zstd; recompress it with gzip")
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return open(path, "rb")


def _field(line: bytes, column: str, where: str) -> str:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{where}: is not a line of JSON in UTF-8: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: is JSON, but not an object with a {column!r} in it")
    if column not in row:
        raise UserError(_no_column(where, column, row))
    text = row[column]
    if text is not None and not isinstance(text, str):
        raise UserError(
            f"{where}: {column!r} is of type {type(text).__name__}; it must be a string"
        )
    return _whole_characters(text or "")


def _whole_characters(text: str) -> str:
    """JSON can spell half of a surrogate pair, which UTF-8 cannot hold: it becomes U+FFFD."""
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def read_parquet(path: Path, column: str) -> Iterator[Document]:
    """A document per row; null counts as an empty one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if column not in schema.names:
                raise UserError(_no_column(str(path), column, schema.names))
            kind = schema.field(column).type
            if not any(is_text(kind) for is_text in (pa.types.is_string, pa.types.is_large_string)):
                raise UserError(f"{path}: {column!r} is of type {kind}; it must be a string")
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=[column]):
                for text in batch.column(0).to_pylist():
                    yield Document(f"{path}:{row}", text or "")
                    row += 1
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not a parquet file that can be read: {error}") from None


def _no_column(where: str, column: str, columns: Iterable[str]) -> str:
    there = ", ".join(columns) or "none"
    return f"{where}: has no column {column!r}; choose with --text-column from: {there}"
