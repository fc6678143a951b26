"""The bytes of an input file, decompressed as they are read."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from typing import IO, NamedTuple

from light_llm.errors import UserError
from light_llm.files import given
from light_llm.files.ranges import RemotePath, Unread
from light_llm.files.remotefile import InputFile, open_remote

COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
XZ_MEMORY = 256 * 2**20
"""Bytes that an .xz may claim for its dictionary: `xz -9` takes 65 MiB."""
_NARROWER = "zstd -dc --long=31 OLD | zstd"
READ_AT_ONCE = 2**18
"""Bytes: each read gives the lock of Python to another thread, and may wait to have it again."""
LONGEST_LINE = 64 * 2**20
"""Bytes: a small compressed file can hold a line of any length, and a line is read at once."""


class Mark(NamedTuple):
    """A place between two lines of a file."""

    byte: int
    lines: int
    """How many are before it."""


@dataclass
class Reading:
    """How far files of `total` bytes are read."""

    total: int
    finished: int = 0
    """Bytes of the files that are done."""
    place: Callable[[], int] = int
    """Bytes of the present one that were read."""
    mark: Mark | None = None
    """Behind the latest document of the present one, where it can be read from there."""

    def read(self) -> int:
        """Bytes that were read."""
        return min(self.total, self.finished + self.place())

    def end(self, size: int) -> None:
        """The present file, of `size` bytes, is done."""
        self.place, self.mark = int, None
        self.finished += size


def printable(path: InputFile) -> str:
    """The path as valid UTF-8 text, for any bytes in the file system.

    A byte that is not UTF-8 is its number, as \\xe9. What stands for one in a name already has its
    backslash so, \\x5c, so that no two paths are the same text.
    """
    name = re.sub(rb"\\(?=x[0-9a-f]{2})", rb"\\x5c", os.fsencode(str(path)))
    return name.decode("utf-8", "backslashreplace")


def size_of(path: InputFile) -> int:
    """In bytes; 0 for a file that cannot be read, of which the reading tells."""
    if isinstance(path, RemotePath):
        return path.size
    try:
        return path.stat().st_size
    except OSError:
        return 0


def state_of(path: InputFile) -> str | int:
    """What is another value for a file of the same size that was changed.

    Raises:
        UserError: the file is no longer there.
    """
    if isinstance(path, RemotePath):
        return path.state
    try:
        return path.stat().st_mtime_ns
    except OSError as error:  # it was there when the input was looked through
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def is_compressed(path: InputFile) -> bool:
    return path.name.lower().endswith(COMPRESSIONS)


def uncompressed(path: InputFile) -> str:
    """The name in lower case, without the ending of a compression."""
    name = path.name.lower()
    return name.removesuffix(next(filter(name.endswith, COMPRESSIONS), ""))


def open_raw(path: InputFile) -> BufferedReader:
    """The bytes of the file as they are, to be read and sought."""
    if isinstance(path, RemotePath):
        return open_remote(path)
    return given.open_regular(path, buffer=READ_AT_ONCE)


def open_bytes(path: InputFile, reading: Reading | None = None) -> IO[bytes]:
    """The bytes of the file, decompressed as they are read, within `decompressing`.

    Raises:
        UserError: as `given.open_regular`, or nothing is in a file that is to be decompressed.
        Unread: here or while it is read, a remote file that cannot be had, or changed.
    """
    name = path.name.lower()
    raw = open_raw(path)
    if is_compressed(path) and not size_of(path):
        raw.close()
        raise UserError(
            f"{printable(path)}: has no bytes, as no compressed file does; get a whole copy of it, "
            "or leave it out"
        )
    if reading is not None:
        reading.place = raw.tell
    if name.endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw, mode="rb"))  # type: ignore[arg-type]
    if name.endswith(".bz2"):
        return bz2.BZ2File(raw)
    if name.endswith(".xz"):
        return io.BufferedReader(_Xz(raw))
    if name.endswith(".zst"):
        import pyarrow as pa

        if not pa.Codec.is_available("zstd"):
            raise UserError(f"{path}: this build of pyarrow has no zstd; recompress it with gzip")
        return io.BufferedReader(pa.input_stream(raw, compression="zstd"))
    return raw


class _Xz(io.RawIOBase):
    """`lzma.LZMAFile` with a limit to the memory that the file may claim."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw, self._decoder = raw, _decoder()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            data = b""
            if self._decoder.eof:  # another stream may follow, behind zeros
                data = self._decoder.unused_data.lstrip(b"\0") or self._raw.read(2**16)
                if not data:
                    return 0
                if not (data := data.lstrip(b"\0")):
                    continue
                self._decoder = _decoder()
            elif self._decoder.needs_input and not (data := self._raw.read(2**16)):
                raise EOFError("it ended before the end of its last stream")
            out = self._decoder.decompress(data, len(buffer))
            if out:
                buffer[: len(out)] = out
                return len(out)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _decoder() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)


@contextlib.contextmanager
def decompressing(path: InputFile) -> Iterator[None]:
    """Around each reading of a file that may be compressed.

    Raises:
        UserError: its bytes are not what its ending says, are damaged, or end too soon.
    """
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if not is_compressed(path):
            raise
        mend = "get a whole copy of it"
        if "memory" in str(error).lower():  # of `zstd --long`, or `xz` with a huge dictionary
            again = "xz -dc OLD | xz" if path.suffix.lower() == ".xz" else _NARROWER
            mend = f"compress it again with a smaller window: `{again} > NEW`"
        raise UserError(
            f"{printable(path)}: cannot be decompressed: {error}; {mend}, or leave it out"
        ) from None


@contextlib.contextmanager
def unreadable() -> Iterator[None]:
    """Around a look at what a file is: one that cannot be read is not what was looked for.

    Raises:
        Unread: a remote file that cannot be had, so nothing is known of it.
    """
    try:
        yield
    except Unread:
        raise
    except (UserError, OSError):
        pass


def read_line(stream: IO[bytes], path: InputFile, where: str) -> bytes:
    """The next line; nothing at the end.

    Raises:
        UserError: it is too long; see `decompressing`.
    """
    with decompressing(path):
        line = stream.readline(LONGEST_LINE + 1)
    if len(line) > LONGEST_LINE:
        raise too_long(where)
    return line


def too_long(where: str) -> UserError:
    return UserError(
        f"{where}: the line has more than {LONGEST_LINE:,} bytes, which is the limit for one; cut "
        "its text into several documents"
    )


def read_lines(stream: IO[bytes], path: InputFile, source: str, number: int = 1) -> Iterator[bytes]:
    """All further lines, the first of which is number `number`.

    Raises:
        UserError: as `read_line`; names `source` and the line.
    """
    with decompressing(path):
        while line := stream.readline(LONGEST_LINE + 1):
            if len(line) > LONGEST_LINE:
                raise too_long(f"{source}:{number}")
            yield line
            number += 1


def check_is_here(path: InputFile) -> None:
    """
    Raises:
        UserError: the file is a pointer of Git LFS, as `git clone` leaves it.
    """
    if size_of(path) < 1024:
        with open_raw(path) as file:
            if file.read(len(given.LFS)) == given.LFS:
                raise UserError(f"{printable(path)}: is {given.POINTER}")
