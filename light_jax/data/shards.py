"""The data paths of a config -> the list of shard files."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from light_llm.errors import UserError
from light_llm.files.shards import shard_files
from light_llm.printing import printable

Paths = str | Path | Sequence[str | Path]


def expand(paths: Paths, field: str = "train_data") -> list[str]:
    """The shard files that `paths` stands for, in the order of `paths`.

    A path is a file (of any ending), a directory (all its *.parquet), or a glob (`**` crosses
    directories); each is expanded in sorted order. A file reached twice, by any name, is taken
    once, with a warning.

    Raises:
        UserError: a path stands for no file. `field` is the config key in the message.
    """
    wanted = [paths] if isinstance(paths, str | Path) else list(paths)
    if not wanted:
        raise UserError(f"{field}=[] names no data; give a directory, a file or a glob")
    found = [file for path in wanted for file in _expand_one(path, field)]
    first_of = {os.path.realpath(file): file for file in reversed(found)}
    shards = list(dict.fromkeys(first_of[os.path.realpath(file)] for file in found))
    if len(shards) < len(found):
        _warn_of_duplicates(found, first_of, field)
    return shards


def _expand_one(path: str | Path, field: str) -> list[str]:
    if not isinstance(path, str | Path) or not str(path):
        raise UserError(
            f"{field} holds {path!r}, which is not a path; give a directory, file or glob"
        )
    text = str(path)
    where = f"{field}={text!r}"
    if files := shard_files(text):
        return files
    if os.path.isdir(text):
        raise UserError(f"{where} is a directory without *.parquet files{_deeper(text)}")
    if "://" in text:
        raise UserError(f"{where} is a URL; shards are read from a file system: mount or copy them")
    looked = "" if os.path.isabs(text) else f" (looked from {Path.cwd()})"
    if not glob.has_magic(text):
        raise UserError(f"{where} does not exist{looked}; give a directory, a file or a glob")
    directories = glob.glob(text, recursive=True)
    rule = "matches directories only; end it in /*.parquet" if directories else "matches no file"
    raise UserError(f"{where} {rule}{looked}")


def _deeper(directory: str) -> str:
    pattern = os.path.join(directory, "**", "*.parquet")
    below = next(
        glob.iglob(os.path.join(glob.escape(directory), "**", "*.parquet"), recursive=True), None
    )
    return f"; there are some further down: use {pattern!r}" if below else "; put the shards there"


def _warn_of_duplicates(found: list[str], first_of: dict[str, str], field: str) -> None:
    seen: set[str] = set()
    dropped = []
    for file in found:
        real = os.path.realpath(file)
        if real in seen:
            dropped.append(f"{file} (already there as {first_of[real]})")
        seen.add(real)
    more = f" and {len(dropped) - 3} more" if len(dropped) > 3 else ""
    warnings.warn(
        printable(f"{field}: each shard is read once; dropped {', '.join(dropped[:3])}{more}"),
        stacklevel=3,
    )
