"""Files of text, JSON lines and tables, each as a stream of documents.

Text, JSON lines and CSV may be compressed: `.gz`, `.zst`, `.bz2` and `.xz` are taken off, and the
ending before says what the file is. No more of a file is decompressed at a time than of a plain one
is read.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections.abc import Iterator
from typing import IO, Any, Literal, NamedTuple

import orjson

from light_llm.errors import UserError
from light_llm.files.remotefile import InputFile
from light_llm.preprocess.jsonarray import begins_with_rows, read_json_array
from light_llm.preprocess.opening import (
    Mark,
    Reading,
    check_is_here,
    decompressing,
    is_compressed,
    open_bytes,
    printable,
    read_line,
    read_lines,
    size_of,
    uncompressed,
    unreadable,
)
from light_llm.preprocess.rows import RowText
from light_llm.preprocess.tables import DELIMITERS, read_csv, read_parquet

JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")
PIECE_CHARS = 2**20

Kind = Literal["text", "lines", "array", "parquet", "csv"]


class Document(NamedTuple):
    source: str
    """The path as it was given; `path:line` (from 1) in JSON lines, `path:row` (from 0) in a JSON
    array, parquet and CSV, `path:piece` (from 0) in a text file that is too large for one
    document."""
    text: str


def has_rows(path: InputFile, rows: RowText) -> bool:
    """Whether `read_file` reads it as rows with columns."""
    return _kind(path, rows) != "text"


def _kind(path: InputFile, rows: RowText) -> Kind:
    name = uncompressed(path)
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith(tuple(DELIMITERS)):
        return "csv"
    if name.endswith(JSON_LINES):
        return "lines"
    if name.endswith(".json"):
        if begins_with_rows(path, rows):
            return "array"
        return "lines" if _holds_rows(path, rows) else "text"
    return "text"


def _holds_rows(path: InputFile, rows: RowText) -> bool:
    """Whether a .json is JSON lines: its first two lines are objects, or its only line is one with
    a text in it. Other files of JSON are text, as sources of a program are."""
    found: list[dict] = []
    with unreadable():
        with open_bytes(path) as stream:
            while len(found) < 2 and (line := read_line(stream, path, "")):
                if line.strip():
                    found.append(_row(line, ""))
        if len(found) == 1:
            rows.field(found[0], "")
        return bool(found)
    return False


def read_file(
    path: InputFile,
    rows: RowText,
    reading: Reading | None = None,
    passed: int = 0,
    mark: Mark | None = None,
) -> Iterator[Document]:
    """The documents of a file behind the first `passed`, read by its ending.

    Args:
        reading: is told the place in the file.
        mark: where the documents behind them begin, as `reading` had it.

    Raises:
        NotText: a text file holds something else; raised before its first document.
        UserError: it cannot be read, or does not match its ending; names the line or row.
    """
    try:
        check_is_here(path)
        kind = _kind(path, rows)
        if kind == "lines" and mark is not None:
            yield from read_json_lines(path, rows, reading, mark)
        elif kind == "parquet" and not is_compressed(path):
            yield from (Document(*row) for row in read_parquet(path, rows, reading, passed))
        else:
            yield from itertools.islice(_from_the_start(path, rows, kind, reading), passed, None)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _from_the_start(
    path: InputFile, rows: RowText, kind: Kind, reading: Reading | None
) -> Iterator[Document]:
    if kind == "text":
        yield from read_text(path, reading=reading)
    elif kind == "lines":
        yield from read_json_lines(path, rows, reading)
    elif kind == "array":
        yield from (Document(*row) for row in read_json_array(path, rows, reading))
    elif kind == "csv":
        delimiter = DELIMITERS[uncompressed(path)[-4:]]
        yield from (Document(*row) for row in read_csv(path, rows, delimiter, reading))
    else:
        raise UserError(
            f"{path}: a parquet file cannot be read while it is compressed as a whole; decompress "
            "it, or leave it out with --exclude"
        )


class NotText(Exception):
    """A file that does not hold UTF-8 text.

    Args:
        encoded: the reason is a byte that no UTF-8 text has.
    """

    def __init__(self, reason: str, *, encoded: bool) -> None:
        super().__init__(reason)
        self.encoded = encoded


def read_text(
    path: InputFile, piece_chars: int = PIECE_CHARS, reading: Reading | None = None
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


def _is_short(path: InputFile, limit: int) -> bool:
    """Whether the file, decompressed, has at most `limit` bytes."""
    if not is_compressed(path):
        return size_of(path) <= limit
    with decompressing(path), open_bytes(path) as stream:
        return len(stream.read(limit + 1)) <= limit


def _pieces(path: InputFile, piece_chars: int, reading: Reading | None = None) -> Iterator[str]:
    try:
        # line ends stay as they are
        with io.TextIOWrapper(open_bytes(path, reading), "utf-8-sig", newline="") as stream:
            while True:
                with decompressing(path):
                    piece = stream.read(piece_chars) + stream.readline(piece_chars)
                if not piece:
                    return
                if "\0" in piece:
                    raise NotText("it holds a zero byte", encoded=False)
                yield piece
    except UnicodeDecodeError as error:
        reason = f"byte 0x{error.object[error.start]:02x}: {error.reason}"
        raise NotText(reason, encoded=True) from None


def read_json_lines(
    path: InputFile, rows: RowText, reading: Reading | None = None, start: Mark | None = None
) -> Iterator[Document]:
    """A document per line that is not blank, from `start` on; null counts as an empty one."""
    source = printable(path)
    marked = None if is_compressed(path) else reading
    with open_bytes(path, reading) as stream:
        byte, before = start or (0, 0)
        if byte:
            _go_to_line(stream, byte, source)
        for number, line in enumerate(read_lines(stream, path, source, before + 1), before + 1):
            byte += len(line)
            if not line.isspace():
                where = f"{source}:{number}"
                text = rows.text(_row(line, where, rows.adapt is None), where)
                if marked is not None:
                    marked.mark = Mark(byte, number)
                yield Document(where, text)


def _go_to_line(stream: IO[bytes], byte: int, source: str) -> None:
    """
    Raises:
        UserError: no line begins there.
    """
    stream.seek(byte - 1)
    last = stream.read(1)
    if last == b"\n" or (last and not stream.read(1)):
        stream.seek(byte)
        return
    raise UserError(
        f"{source}: no line begins at byte {byte:,}, where the stopped run was; begin again with "
        "--overwrite"
    )


def _row(line: bytes, where: str, only_text: bool = True) -> dict:
    """The object of a line.

    Args:
        only_text: its numbers do not matter: orjson rounds those beyond 64 bits.
    """
    try:
        row = _parsed(line, only_text)
    except (
        ValueError,
        RecursionError,
    ) as error:  # the latter: thousands of nested brackets
        raise UserError(
            f"{where}: is not a line of JSON in UTF-8: {error}; each line must hold one object and "
            "nothing else: write the file again so, in UTF-8"
        ) from None
    if not isinstance(row, dict):
        raise UserError(
            f"{where}: is JSON, but not an object with the text in it; each line must hold one "
            "object. A file that is one array of them must end in .json"
        )
    return row


def _parsed(line: bytes, only_text: bool) -> Any:
    if only_text:
        with contextlib.suppress(orjson.JSONDecodeError):  # it is stricter: half surrogates, a BOM
            return orjson.loads(line)
    return json.loads(line.decode("utf-8-sig"))
