"""The data paths of a config -> the list of shard files, or of their URLs."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from light_llm.errors import UserError
from light_llm.files import urls
from light_llm.files.shards import BRACKETS, shard_files
from light_llm.printing import printable

Paths = str | Path | Sequence[str | Path]


def expand(paths: Paths, field: str = "train_data") -> list[str]:
    """The shard files that `paths` stands for, in the order of `paths`.

    A path is a file (of any ending), a directory (all its *.parquet), or a glob (`**` crosses
    directories); each is expanded in sorted order. A file reached twice, by any name, is taken
    once, with a warning. A URL stands for the URLs of such files.

    Raises:
        UserError: a path stands for no file. `field` is the config key in the message.
    """
    wanted = [paths] if isinstance(paths, str | Path) else list(paths)
    if not wanted:
        raise UserError(f"{field}=[] names no data; give a directory, a file or a glob")
    found = [file for path in wanted for file in _expand_one(path, field)]
    first_of = {identity(file): file for file in reversed(found)}
    shards = list(dict.fromkeys(first_of[identity(file)] for file in found))
    if len(shards) < len(found):
        _warn_of_duplicates(found, first_of, field)
    return shards


def _expand_one(path: str | Path, field: str) -> list[str]:
    if not isinstance(path, str | Path) or not str(path):
        raise UserError(
            f"{field} holds {path!r}, which is not a path; give a directory, file or glob"
        )
    text = str(path)
    if urls.is_url(text):
        return _expand_url(text, field)
    where = f"{field}={text!r}"
    if files := shard_files(text):
        return files
    if os.path.isdir(text):
        raise UserError(f"{where} is a directory without *.parquet files{_deeper(text)}")
    looked = "" if os.path.isabs(text) else f" (looked from {Path.cwd()})"
    if not glob.has_magic(text):
        raise UserError(f"{where} does not exist{looked}; give a directory, a file or a glob")
    directories = glob.glob(text, recursive=True)
    rule = "matches directories only; end it in /*.parquet" if directories else "matches no file"
    if "[" in text and not directories:
        looked += f"; {BRACKETS}"
    raise UserError(f"{where} {rule}{looked}")


def _expand_url(url: str, field: str) -> list[str]:
    where = f"{field}={urls.without_secrets(url)!r}"
    try:
        urls.check(url)
    except ValueError as error:
        raise UserError(f"{where} {error}") from None
    from light_llm.files import remote

    try:
        files = remote.listed(url)
    except UserError as error:
        raise UserError(f"{field}: {error}") from None
    if files:
        return files
    if remote.is_folder(url):
        pattern = urls.child(url.replace("[", "[[]"), "**", "*.parquet")
        raise UserError(
            f"{where} is a folder without *.parquet objects; put the shards there, or use "
            f"{pattern!r} if they are further down"
        )
    rule = "matches no object" if urls.has_magic(url) else "does not exist"
    raise UserError(f"{where} {rule}; {remote.look(url)}")


def identity(file: str) -> str:
    """What two names of the same file have in common."""
    return file if urls.is_url(file) else os.path.realpath(file)


def _deeper(directory: str) -> str:
    pattern = os.path.join(glob.escape(directory), "**", "*.parquet")
    below = next(glob.iglob(pattern, recursive=True), None)
    return f"; there are some further down: use {pattern!r}" if below else "; put the shards there"


def _warn_of_duplicates(found: list[str], first_of: dict[str, str], field: str) -> None:
    seen: set[str] = set()
    dropped = []
    for file in found:
        real = identity(file)
        if real in seen:
            dropped.append(f"{file} (already there as {first_of[real]})")
        seen.add(real)
    more = f" and {len(dropped) - 3} more" if len(dropped) > 3 else ""
    warnings.warn(
        printable(f"{field}: each shard is read once; dropped {', '.join(dropped[:3])}{more}"),
        stacklevel=3,
    )
