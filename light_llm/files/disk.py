"""Writing that survives a crash: data is flushed to the disk before anything relies on it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from light_llm.errors import UserError
from light_llm.files.given import kind_of


def sync(path: Path) -> None:
    """Flush a file, or the names that a folder holds."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a FIFO would wait
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Flush `folder`, every folder below it, and every file.

    Args:
        wanted: chooses files by name relative to `folder`.
    """
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            if wanted(str(path.relative_to(folder))):
                sync(path)
        sync(Path(root))


def remove(folder: Path) -> None:
    """Delete a file, a folder with its content, or a link (not its target)."""
    try:
        mode = os.lstat(folder).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        shutil.rmtree(folder)  # follows no link either
    else:
        folder.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, unless it is there.

    Raises:
        UserError: something else has its name, or a link has, even one to a folder.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(parents=True)
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise UserError(
            f"{folder}: is {kind_of(folder)}, and a folder must be there, which is written in and "
            "emptied; move it away"
        )


@contextlib.contextmanager
def held(folder: Path, message: str) -> Iterator[None]:
    """Make a folder unless it is there, and hold its lock; it may be renamed or deleted inside.

    Raises:
        UserError: with `message`, another process holds it; or see `make_folder`.
    """
    make_folder(folder)
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # its holder may have renamed or deleted it after we opened it
            is_there = os.path.samestat(os.fstat(descriptor), os.stat(folder))
        except (BlockingIOError, FileNotFoundError):
            is_there = False
        if not is_there:
            raise UserError(message)
        yield


def create(path: Path) -> BinaryIO:
    """Open a new file to write. A file or link with its name is deleted first."""
    path.unlink(missing_ok=True)
    return path.open("xb")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put `path` into an OSError that names no file, such as that of a disk that is full."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file atomically: the path to write the new one to, which then takes its place.

    After an error the old file is as it was, and the new one is gone. An error of the disk names
    the file.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # a link there would lead elsewhere
    try:
        with naming(path):
            yield temporary
        sync(temporary)
        try:
            temporary.rename(path)
        except OSError as error:  # a folder is in the way, which is not what `temporary` is
            raise OSError(error.errno, error.strerror, str(path)) from None
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()  # it takes space on a full disk
        raise
    sync(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file atomically by one with these bytes."""
    with replacing(path) as temporary, temporary.open("xb") as file:
        file.write(data)


class Lock:
    """A lock that this process holds on the file `path`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path.absolute()
        self._descriptor = descriptor
        self._folder = os.stat(self.path.parent)

    def holds(self) -> bool:
        """Whether `path` is still the file that is locked, in the same folder."""
        held = os.fstat(self._descriptor)
        try:
            there, folder = os.lstat(self.path), os.stat(self.path.parent)
        except OSError:
            return False
        return os.path.samestat(there, held) and os.path.samestat(folder, self._folder)

    def check(self, message: str) -> None:
        """To be called before each commit.

        Raises:
            UserError: with `message`, `path` is gone, or is no longer the file that is locked.
        """
        if not self.holds():
            raise UserError(message)


class Held(UserError):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(path: Path, message: str, *, shared: bool = False) -> Iterator[Lock]:
    """Hold a lock: a file that is made if it is absent, and that nobody reads or writes.

    Args:
        shared: with all others who share it, and with nobody else.

    Raises:
        Held: with `message`, another process holds it.
        UserError: `path` is not a regular file.
        OSError: it cannot be opened, or is a symlink, which is not followed.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path}: is {kind_of(path)}, and a regular file must be there as the lock")
    with os.fdopen(descriptor, "rb") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Held(message) from None
        # its holder removed it after we opened it: a third process may hold a new one by now
        if os.fstat(file.fileno()).st_nlink == 0:
            raise Held(message)
        yield Lock(path, file.fileno())
