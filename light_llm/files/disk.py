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
    os.replace(temporary, path)
    sync(path.parent)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One writer per directory.

    Raises:
        UserError: another run holds it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW  # it is never written: a lock alone
    with os.fdopen(os.open(directory / ".lock", flags, 0o666), "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"checkpoint_dir={str(directory)!r} is being written by another run; wait for it, "
                "or use another checkpoint_dir"
            ) from None
        yield
