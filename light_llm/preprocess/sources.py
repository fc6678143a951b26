"""Where documents come from: files, folders and globs of text, JSON lines and parquet."""

from __future__ import annotations

import glob
import gzip
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

from light_llm.errors import UserError

JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
PIECE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Document:
    source: str
    """The path as it was given; `path:line` (from 1) in JSON lines, `path:row` (from 0) in
    parquet, `path:piece` (from 0) in a text file that is too large for one document."""
    text: str


@dataclass(frozen=True)
class SourceFile:
    path: Path
    named: bool
    """Named by the user, not found in a folder or by a glob: it must be text."""


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


def find_files(
    inputs: Iterable[str],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    without: Sequence[Path] = (),
) -> tuple[list[SourceFile], int]:
    """The files of all inputs, each input's in sorted order, and how many duplicates were dropped.

    A folder gives all its files, deep, save hidden ones; `include` and `exclude` choose among
    what folders and globs give, and never drop a file that was named. A pattern without a slash
    is matched with each name on the way from the input down to the file (include: with the
    file's), one with a slash with the path from the input. Nothing below `without` is taken.

    Raises:
        UserError: an input does not exist, matches nothing, or leaves no file.
    """
    barred = {path.resolve() for path in without}
    seen: dict[Path, SourceFile] = {}
    duplicates = 0
    for text in inputs:
        path = Path(text).expanduser()
        if path.is_file():
            found = [SourceFile(path, named=True)]
        else:
            found = [
                SourceFile(root / rest, named=False)
                for root, rest in _candidates(path, text, barred)
                if _is_chosen(rest, include, exclude)
            ]
            if not found:
                filters = [*(f"--include {p!r}" for p in include)]
                filters += [f"--exclude {p!r}" for p in exclude]
                rule = f" that {' '.join(filters)} lets through" if filters else ""
                raise UserError(f"--input {text}: there is no file in it{rule}")
        for file in found:
            duplicates += file.path.resolve() in seen
            seen.setdefault(file.path.resolve(), file)
    return list(seen.values()), duplicates


def _candidates(path: Path, text: str, barred: set[Path]) -> list[tuple[Path, Path]]:
    """The files of a folder or glob as (root, path from there), sorted by path."""
    if path.is_dir():
        return _walk(path, barred)
    if not path.exists() and not glob.has_magic(text):
        raise UserError(
            f"--input {text}: there is no such file or folder (looked from {Path.cwd()})"
        )
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
    if not matches:
        raise UserError(f"--input {text}: the glob matches nothing (looked from {Path.cwd()})")
    found: list[tuple[Path, Path]] = []
    for match in matches:
        inside = _walk(match, barred) if match.is_dir() else [(match.parent, Path(match.name))]
        found += inside
    return found


def _walk(root: Path, barred: set[Path]) -> list[tuple[Path, Path]]:
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and (Path(folder) / name).resolve() not in barred
        ]
        found += [Path(folder) / name for name in names if not name.startswith(".")]
    return [(root, path.relative_to(root)) for path in sorted(found) if path.is_file()]


def _is_chosen(path: Path, include: Sequence[str], exclude: Sequence[str]) -> bool:
    whole = path.as_posix()
    if include and not any(fnmatchcase(whole if "/" in p else path.name, p) for p in include):
        return False
    ways = [parent.as_posix() for parent in path.parents] + [whole]
    return not any(
        fnmatchcase(name, pattern)
        for pattern in exclude
        for name in (ways if "/" in pattern else path.parts)
    )


def read_text(path: Path, piece_bytes: int = PIECE_BYTES) -> Iterator[Document]:
    """One document; a file beyond `piece_bytes` comes in pieces of about that, cut at line ends.

    Memory is the reason: a tokenizer holds some hundred bytes per token of a document.
    """
    whole = path.stat().st_size <= piece_bytes
    with open(path, "rb") as stream:
        number = 0
        while piece := stream.read(piece_bytes) + stream.readline():
            if b"\0" in piece:
                raise NotText("it holds a zero byte")
            try:
                text = piece.decode("utf-8-sig" if number == 0 else "utf-8")
            except UnicodeDecodeError as error:
                raise NotText(f"byte {number * piece_bytes + error.start}: {error.reason}") from None
            yield Document(str(path) if whole else f"{path}:{number}", text)
            number += 1


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


def _open_lines(path: Path) -> IO[bytes]:
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
        raise UserError(f"{where}: {column!r} is of type {type(text).__name__}; it must be a string")
    # JSON can spell half of a surrogate pair, which is no character and which UTF-8 cannot hold.
    return (text or "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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
