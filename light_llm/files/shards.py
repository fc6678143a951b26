"""The files that a data path of a config stands for."""

from __future__ import annotations

import glob
import os

BRACKETS = "in a glob, [ab] is one of a and b, and a [ of a name is written [[]"
"""What to know where a path with a bracket matches nothing."""


def shard_files(path: str) -> list[str]:
    """Sorted: a directory's *.parquet, a file of any ending, or what a glob matches (`**` crosses
    directories). Empty where there is no such file."""
    if os.path.isdir(path):
        return sorted(glob.glob(os.path.join(glob.escape(path), "*.parquet")))
    if os.path.exists(path):
        return [path]
    return sorted(file for file in glob.glob(path, recursive=True) if not os.path.isdir(file))
