"""Reading what comes from outside: a file that somebody else wrote is data, and may be hostile.

Each reader here opens regular files only (a FIFO would hang, a device has no end), reads no more
than a limit, and turns any error that the content causes into a `UserError` that names the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

from light_llm.errors import UserError, one_line

SMALL = 16 * 2**20
"""Bytes: configs, snapshots, manifests, notes."""
LARGE = 512 * 2**20
"""Bytes: tokenizer.json of the largest vocabularies, journals, metrics."""

LFS = b"version https://git-lfs.github.com/spec/"
"""How a pointer of Git LFS begins, which `git clone` leaves in the place of a large file."""
POINTER = "a pointer of Git LFS; get the file itself with `git lfs pull`"

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISREG, "a file"),
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: str | Path, what: str = "the file", buffer: int = -1) -> BufferedReader:
    """Open a regular file to read its bytes; never waits.

    Args:
        what: the file's name in messages.
        buffer: how many bytes are read at a time at least; -1: what the file system likes.

    Raises:
        UserError: there is no such file, it cannot be opened, or it is not a regular file.
    """
    try:
        # O_NONBLOCK: opening a FIFO would wait for a writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{path}: {what} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a zero byte in the name
        raise UserError(f"{str(path)!r}: {what} cannot be read: {error}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise UserError(f"{path}: {what} is {_kind(mode)}; a regular file must be there")
    return cast(BufferedReader, os.fdopen(descriptor, "rb", buffer))


def kind_of(path: Path) -> str:
    """The kind of a file, for a message: `a folder`, `a link`; a link is not followed."""
    return _kind(os.lstat(path).st_mode)


def _kind(mode: int) -> str:
    return next((name for test, name in _KINDS if test(mode)), "not a regular file")


def check_regular(path: str | Path, what: str = "the file") -> int:
    """The size in bytes of a regular file that a library will open by its name.

    Raises:
        UserError: as `open_regular`.
    """
    with open_regular(path, what) as file:
        return os.fstat(file.fileno()).st_size


def read_bytes(path: str | Path, limit: int = SMALL, what: str = "the file") -> bytes:
    """All bytes of a regular file.

    Raises:
        UserError: as `open_regular`, or it has more than `limit` bytes.
    """
    with open_regular(path, what) as file:
        try:
            data = file.read(limit + 1)  # the size that stat gives may be a lie, in /proc
        except OSError as error:
            raise UserError(f"{path}: {what} cannot be read: {error.strerror or error}") from None
    if len(data) > limit:
        raise UserError(f"{path}: {what} has more than {limit:,} bytes, which is the limit for it")
    return data


def read_text(path: str | Path, limit: int = SMALL, what: str = "the file") -> str:
    """The text of a regular file in UTF-8.

    Raises:
        UserError: as `read_bytes`, or it is not UTF-8.
    """
    data = read_bytes(path, limit, what)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {what} cannot be read: not UTF-8 text: {error}") from None


def parse_json(text: str | bytes, source: str | Path, **options: Any) -> Any:
    """A JSON text as Python values. A byte order mark, which some editors put first, is dropped.

    Args:
        options: of `json.loads`.

    Raises:
        UserError: broken syntax, nesting that is too deep, or a number that is too long.
    """
    try:
        if isinstance(text, str):  # of bytes json drops it itself
            text = text.removeprefix("\ufeff")
        return json.loads(text, **options)
    except RecursionError:
        raise UserError(f"{source}: not valid JSON: its nesting is too deep") from None
    except ValueError as error:
        raise UserError(f"{source}: not valid JSON: {_instead(text) or error}") from None


def _instead(text: str | bytes) -> str | None:
    """What stands in the place of JSON, and what to do, where the first bytes tell."""
    head = text[:99].encode("utf-8", "replace") if isinstance(text, str) else text[:99]
    if head.startswith(LFS):
        return f"it is {POINTER}"
    if head.lstrip().startswith(b"<"):
        return "it is a page of HTML or XML, as a server sends for a file it lacks; fetch it again"
    return None


def read_json(path: str | Path, limit: int = SMALL, what: str = "the file", **options: Any) -> Any:
    """The JSON in a regular file.

    Raises:
        UserError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, limit, what), path, **options)


def is_name(text: Any) -> bool:
    """Whether a name from a file is one component of a path, so that it cannot lead elsewhere."""
    return (
        isinstance(text, str)
        and text not in ("", ".", "..")
        and "/" not in text
        and "\0" not in text
        and len(os.fsencode(text)) < 256
    )


def leads_out(path: Path, folder: Path) -> Path | None:
    """Where a link below `folder` leads, if that is outside `folder`; else None."""
    real = path.resolve()
    return None if real.is_relative_to(folder.resolve()) else real


@contextlib.contextmanager
def foreign(explain: Callable[[str], str]) -> Iterator[None]:
    """Around a library that parses given data: any error that it raises becomes a `UserError`.

    A panic of a library in Rust is a BaseException, which `except Exception` misses. A
    `UserError`, and errors that end the program, pass unchanged.

    Args:
        explain: makes the message from the library's reason.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(explain(one_line(error))) from None
