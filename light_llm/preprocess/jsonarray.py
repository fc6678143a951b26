"""A JSON array of rows, `[{"text": …}, …]`, as a stream of documents.

The array is never held as a whole: its elements are decoded one by one.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from typing import Any

from light_llm.errors import UserError
from light_llm.files.remotefile import InputFile
from light_llm.preprocess.opening import (
    LONGEST_LINE,
    Reading,
    decompressing,
    open_bytes,
    printable,
    unreadable,
)
from light_llm.preprocess.rows import RowText

PIECE = 2**20
FIRST = 64
"""Elements that decide whether a file is an array of rows."""
SPACE = " \t\r\n"
LONGEST_WORD = len("\\ud83d\\ude00")  # of JSON, beside strings and numbers


def begins_with_rows(path: InputFile, rows: RowText) -> bool:
    """Whether a file is an array whose first elements are objects with a text in them."""
    characters = number = 0
    with unreadable():  # what is damaged further on is told as such
        for row in _elements(path):
            try:
                column = rows.field(row, "")
            except UserError:
                return False
            if column is None:
                return True
            if not isinstance(row[column], str | None):
                return False
            number += 1
            characters += len(row[column] or "")
            if number == FIRST or characters > PIECE:
                break
    return number > 0


def read_json_array(
    path: InputFile, rows: RowText, reading: Reading | None = None
) -> Iterator[tuple[str, str]]:
    """`path:row`, from 0, and the text of each element; null counts as an empty text.

    Raises:
        UserError: it is no array of objects with a text in them; names the row.
    """
    source = printable(path)
    for number, row in enumerate(_elements(path, reading)):
        where = f"{source}:{number}"
        yield where, rows.text(row, where)


def _elements(path: InputFile, reading: Reading | None = None) -> Iterator[dict[str, Any]]:
    """The objects of an array, as they are read.

    Raises:
        UserError: it is no such array, or an object is too long.
    """
    source = printable(path)
    with io.TextIOWrapper(open_bytes(path, reading), "utf-8-sig") as stream:
        text = _Text(stream, path)
        if text.next() != "[":
            raise UserError(f"{source}: does not begin an array")
        text.pass_by(1)
        for number in itertools.count():
            where = f"{source}:{number}"
            mark = text.next()
            if mark == "]":
                text.pass_by(1)
                if text.next():
                    raise UserError(f"{where}: the array is over; remove what stands behind it")
                return
            if number:
                if mark != ",":
                    raise UserError(
                        f"{where}: a `,` or `]` must stand behind each object of the array; write "
                        "the file again"
                    )
                text.pass_by(1)
            yield text.element(where)


class _Text:
    """What is left of a stream of text, a piece of it in memory."""

    def __init__(self, stream: io.TextIOWrapper, path: InputFile) -> None:
        self._stream, self._path = stream, path
        self._piece, self._at = "", 0
        self._decoder = json.JSONDecoder()

    def _more(self, size: int) -> bool:
        """Take `size` characters more into memory; False at the end."""
        try:
            with decompressing(self._path):
                read = self._stream.read(size)
        except UnicodeDecodeError as error:
            raise UserError(f"{printable(self._path)}: is not JSON in UTF-8: {error}") from None
        self._piece, self._at = self._piece[self._at :] + read, 0
        return bool(read)

    def next(self) -> str:
        """The next character that is no space, which stays; "" at the end."""
        while True:
            while self._at < len(self._piece):
                if self._piece[self._at] not in SPACE:
                    return self._piece[self._at]
                self._at += 1
            if not self._more(PIECE):
                return ""

    def pass_by(self, characters: int) -> None:
        self._at += characters

    def element(self, where: str) -> dict[str, Any]:
        """The next object."""
        if self.next() != "{":
            raise UserError(
                f"{where}: each element of the array must be an object with the text in it"
            )
        while True:
            try:
                row, self._at = self._decoder.raw_decode(self._piece, self._at)
                return row
            except RecursionError:
                raise UserError(f"{where}: its nesting is too deep") from None
            except json.JSONDecodeError as error:
                held = len(self._piece) - self._at
                if held > LONGEST_LINE:
                    raise UserError(
                        f"{where}: the object has more than {LONGEST_LINE:,} characters, which is "
                        "the limit for one; cut its text into several documents"
                    ) from None
                # twice as much each time, so that a long object is not decoded all too often
                if not self._is_cut(error) or not self._more(max(PIECE, held)):
                    raise UserError(f"{where}: is not JSON: {error.msg}; write it again") from None
            except ValueError as error:  # a number with thousands of digits
                raise UserError(f"{where}: is not JSON that can be read: {error}") from None

    def _is_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether it may be an error only since the piece ends there."""
        return error.msg.startswith("Unterminated") or error.pos > len(self._piece) - LONGEST_WORD
