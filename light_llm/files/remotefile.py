"""A remote object as a file: read in blocks that are fetched ahead, in bounded memory.

A block is tried again by itself, so a cut connection costs a block at most, and `seek` costs
nothing. What a server without byte ranges has is fetched whole, to the copies of `fetched`.
"""

from __future__ import annotations

import io
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO

from light_llm.errors import UserError
from light_llm.files import fetched, ranges
from light_llm.files.ranges import RemotePath, Unread

BLOCK = 4 * 2**20
AHEAD = 3
"""Blocks that are fetched at once, where a file is read from one to the next."""
KEPT = 8
"""Blocks in memory: a file is opened several times, to see what it is and then to be read."""

_lock = threading.Lock()
_blocks: OrderedDict[tuple[RemotePath, int], Future[bytes | None]] = OrderedDict()
_without_ranges: set[str] = set()

InputFile = Path | RemotePath
"""A file of this machine, or an object of a store."""


def open_remote(path: RemotePath) -> io.BufferedReader:
    """The bytes of an object. Reading raises `Unread` where they cannot be had."""
    return io.BufferedReader(_Remote(path), 2**17)


def expect(files: Sequence[InputFile]) -> None:
    """Begin to fetch those that are read after the first, where all are small: each would be waited
    for, else."""
    small = [
        path
        for path in files[: 1 + AHEAD]
        if isinstance(path, RemotePath) and 0 < path.size <= BLOCK
    ]
    if files and small[:1] == [files[0]]:
        for path in small:
            _block(path, 0)


class Held:
    """An object of which parts lie in a temporary file, to be read several times."""

    def __init__(self, path: RemotePath) -> None:
        self._remote = _Remote(path)
        self.stream = io.BufferedReader(self._remote, 2**17)

    def hold(self, start: int, length: int) -> None:
        """Take bytes from `start` on into the temporary file."""
        remote = self._remote
        remote.until = start + length
        remote.seek(start)
        while (at := remote.tell()) < start + length:
            data = remote.read(min(BLOCK, start + length - at))
            if not data:
                raise Unread(
                    f"{remote.path}: is said to have {length:,} bytes from byte {start:,} on, and "
                    f"ends at {remote.path.size:,}; write it again"
                )
            try:
                if remote.held is None:
                    remote.held = tempfile.TemporaryFile()  # noqa: SIM115 (of this object's life)
                os.pwrite(remote.held.fileno(), data, at)
            except OSError as error:
                raise Unread(
                    f"{remote.path}: {length:,} bytes of it cannot be written to a temporary file "
                    f"in {tempfile.gettempdir()} ({error.strerror or error}); name a folder on "
                    "another disk in TMPDIR"
                ) from None
        remote.until = None
        remote.held_parts.append((start, start + length))

    def drop(self) -> None:
        """Forget what was held, and free its space."""
        self._remote.held_parts.clear()
        if self._remote.held is not None:
            self._remote.held.close()
            self._remote.held = None

    def read_at(self, length: int, at: int) -> bytes:
        """As `os.pread`, within what is held."""
        return self._remote.held_bytes(at, length)

    def close(self) -> None:
        self.drop()
        self.stream.close()


class _Remote(io.RawIOBase):
    def __init__(self, path: RemotePath) -> None:
        self.path = path
        self.held: IO[bytes] | None = None
        self.held_parts: list[tuple[int, int]] = []
        self.until: int | None = None
        """Where who reads will stop, if that is known."""
        self._at = 0
        self._number, self._block = -1, b""  # the latest block
        self._whole: IO[bytes] | None = None  # of a server without ranges

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.path.size}[whence]
        if start + offset < 0:
            raise OSError(f"byte {start + offset} is before the begin of the file")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = min(len(buffer), self.path.size - self._at)
        if length <= 0:
            return 0
        data = self.held_bytes(self._at, length) or self._fetched(length)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def held_bytes(self, at: int, length: int) -> bytes:
        """At most `length` from a place on; none where it is not held."""
        for start, stop in self.held_parts:
            if self.held is not None and start <= at < stop:
                return os.pread(self.held.fileno(), min(length, stop - at), at)
        return b""

    def _fetched(self, length: int) -> bytes:
        """At least one byte, and at most `length`, from the present place on."""
        number, offset = divmod(self._at, BLOCK)
        if number != self._number and self._whole is None:
            self._go_to(number)
        if self._whole is not None:
            return os.pread(self._whole.fileno(), length, self._at)
        return self._block[offset : offset + length]

    def _go_to(self, number: int) -> None:
        coming = _block(self.path, number)
        # who reads on from one block to the next is likely to go on
        if self.until is not None or 0 < number == self._number + 1:
            stop = self.path.size if self.until is None else self.until
            for following in range(number + 1, min(number + AHEAD, -(-stop // BLOCK))):
                _block(self.path, following)
        data = coming.result()
        if data is None:
            self._whole = _copy(self.path)
        else:
            self._number, self._block = number, data

    def close(self) -> None:
        if self._whole is not None:
            self._whole.close()
        super().close()


def _block(path: RemotePath, number: int) -> Future[bytes | None]:
    """A block of an object, from memory, or on its way; None where its server gives no ranges.

    The threads are daemons: a process that ends does not wait for them.
    """
    key = path, number
    with _lock:
        if key in _blocks:
            _blocks.move_to_end(key)
            return _blocks[key]
        coming = _blocks[key] = Future()
        while len(_blocks) > KEPT:
            _blocks.popitem(last=False)
    arguments = (path, number, coming)
    threading.Thread(target=_bring, args=arguments, name="light-range", daemon=True).start()
    return coming


def _bring(path: RemotePath, number: int, coming: Future[bytes | None]) -> None:
    start = number * BLOCK
    try:
        data = None
        if path.url not in _without_ranges:
            data = ranges.read(path, start, min(start + BLOCK, path.size))
        if data is None:
            _without_ranges.add(path.url)
    except BaseException as error:
        with _lock:
            _blocks.pop((path, number), None)  # the next that needs it tries again
        coming.set_exception(error)
    else:
        coming.set_result(data)


def _copy(path: RemotePath) -> IO[bytes]:
    """The copy of an object, whole, which is fetched unless it is here."""
    try:
        fetched.look_again(path.url)
        copy = fetched.local(path.url).open("rb")
    except (UserError, OSError) as error:
        raise Unread(f"{error}") from None
    if os.fstat(copy.fileno()).st_size != path.size:
        copy.close()
        raise ranges.changed(path)
    ranges.check(path)
    return copy
