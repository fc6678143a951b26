"""What must be on the disk itself before it is relied on: a crash can lose what is only cached."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Flush a file, or the names that a folder holds."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush(folder: Path) -> None:
    """Flush every file and folder below `folder`, and itself."""
    for root, _, names in os.walk(folder):
        for name in names:
            sync(Path(root) / name)
        sync(Path(root))
