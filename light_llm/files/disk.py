"""What must be on the disk itself before it is relied on: a crash can lose what is only cached."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from light_llm.errors import UserError


def sync(path: Path) -> None:
    """Flush a file, or the names that a folder holds."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Flush every folder below `folder`, itself, and every file.

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
    """Delete a folder if it is there; of a symlink, the link alone."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file by another, whole at every instant."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # a symlink would be written through
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync(path.parent)


@contextlib.contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Hold a lock: a file that is made where it is absent, and that nobody reads or writes.

    Raises:
        UserError: with `message`, another process holds it.
        OSError: it cannot be opened; so it is with a symlink, which is not followed.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o666), "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(message) from None
        # its holder removed it after we opened it: a third process may hold a new one by now
        if os.fstat(file.fileno()).st_nlink == 0:
            raise UserError(message)
        yield
