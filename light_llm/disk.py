"""What must be on the disk itself before it is relied on: a crash can lose what is only cached."""

import os
from collections.abc import Callable
from pathlib import Path


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
