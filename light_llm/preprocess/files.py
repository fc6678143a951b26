"""The files of an --input: the file itself, all files in a folder, or the matches of a glob."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from light_llm.errors import UserError
from light_llm.files import given, urls
from light_llm.files.remotefile import InputFile
from light_llm.files.shards import BRACKETS


@dataclass(frozen=True)
class SourceFile:
    path: InputFile
    named: bool
    """Named by the user, not found in a folder or by a glob: it must be text."""
    leads_to: Path | None = None
    """Its target, if it is a link that leads out of the given folder."""
    origin: int = 0
    """The number of the input that it was found in."""


def find_files(
    inputs: Iterable[str],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    without: Iterable[Path] = (),
) -> tuple[list[SourceFile], int]:
    """The files of all inputs, sorted within each input, and how many duplicates were dropped.

    A folder gives all files below it, except hidden ones and those below `without`. `include` and
    `exclude` choose among the files of folders and globs; a named file is always taken. A pattern
    with a slash is matched with the path from the input (for a glob: from where its pattern
    begins), a pattern without one with the name only. Files below an excluded folder are left out.

    An input that is a URL is an object of a store, a folder or a glob there; of `file://` it is the
    path.

    Raises:
        UserError: an input does not exist, matches nothing, or leaves no file; a store cannot be
            asked for it.
    """
    barred = {path.resolve() for path in without}
    seen: dict[InputFile, SourceFile] = {}
    duplicates = 0
    for origin, text in enumerate(inputs):
        if text.startswith("file:///"):
            text = text.removeprefix("file://")
        path = Path(text).expanduser()
        if urls.is_url(text):
            found = _remote(text, include, exclude)
        elif path.is_file():
            found = [SourceFile(path, named=True)]
        else:
            root, chosen = _choose(path, text, include, exclude, barred)
            found = [SourceFile(file, False, _out_of(root, file)) for file in chosen]
        if not found:
            filters = [f"--include {p!r}" for p in include] + [f"--exclude {p!r}" for p in exclude]
            rule = f" that {' '.join(filters)} leaves" if filters else ""
            raise UserError(f"--input {text}: there is no file in it{rule}; check the path")
        for file in found:
            real = file.path.resolve() if isinstance(file.path, Path) else file.path
            duplicates += real in seen
            seen.setdefault(real, replace(file, origin=origin))
    return list(seen.values()), duplicates


def links_out(folder: Path) -> dict[Path, Path]:
    """The links to files below a folder that lead out of it, each with its target.

    Raises:
        UserError: a file in it is not a regular file, so reading it might never end.
    """
    found = {}
    for root, _, names in os.walk(folder):
        for path in (Path(root, name) for name in names):
            if path.is_symlink() and (target := given.leads_out(path, folder)):
                found[path] = target
            if path.exists() and not path.is_file():
                given.check_regular(path)
    return found


def _choose(
    path: Path, text: str, include: Sequence[str], exclude: Sequence[str], barred: set[Path]
) -> tuple[Path, list[Path]]:
    """A folder, or the folder that a glob starts in, and the chosen files below it."""
    root, starts = _root_and_starts(path, text)

    def is_out(found: Path) -> bool:
        return _is_left_out(found.relative_to(root), exclude) or (
            bool(barred) and found.resolve() in barred
        )

    files: set[Path] = set()
    for start in starts:
        between = [start, *start.parents][: len(start.relative_to(root).parts)]
        if not any(is_out(way) for way in between):
            files.update(_walk(start, is_out))
    return root, sorted(
        file for file in files if not include or _matches(file.relative_to(root), include)
    )


def _remote(url: str, include: Sequence[str], exclude: Sequence[str]) -> list[SourceFile]:
    from light_llm.preprocess.remoteinput import find_objects

    found, named = find_objects(url, lambda path: _is_left_out(path, exclude))
    if named:
        return [SourceFile(found[0][1], named=True)]
    return [
        SourceFile(file, named=False)
        for path, file in found
        if not include or _matches(path, include)
    ]


def _is_left_out(path: PurePath, exclude: Sequence[str]) -> bool:
    """Whether a file or folder, by its path from the input, is hidden or excluded."""
    return path.name.startswith(".") or _matches(path, exclude)


def _out_of(root: Path, file: Path) -> Path | None:
    return given.leads_out(file, root) if file.is_symlink() else None


def _root_and_starts(path: Path, text: str) -> tuple[Path, list[Path]]:
    """The folder that patterns are relative to, and the files and folders that `text` names."""
    if path.is_dir():
        return path, [path]
    if path.exists():
        given.check_regular(path, "--input")
    if path.exists() or not glob.has_magic(text):
        raise UserError(
            f"--input {text}: there is no such file or folder (looked from {Path.cwd()})"
        )
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    root = Path(*fixed)
    rest = [part if part == "**" else part.replace("**", "*") for part in path.parts[len(fixed) :]]
    # pathlib's ** skips links to folders, but glob's follows them in circles
    matches = [match for match in root.glob("/".join(rest)) if not _is_linked(match, root)]
    if not matches:
        hint = f"; {BRACKETS}" if "[" in text else ""
        raise UserError(
            f"--input {text}: the glob matches nothing (looked from {Path.cwd()}){hint}"
        )
    return root, matches


def _is_linked(path: Path, root: Path) -> bool:
    """Whether a folder on the way from `root` to `path`, or `path` if it is one, is a link."""
    depth = len(path.relative_to(root).parts)
    return any(way.is_symlink() and way.is_dir() for way in [path, *path.parents][:depth])


def _walk(start: Path, is_out: Callable[[Path], bool]) -> Iterator[Path]:
    if start.is_file():
        yield start
        return

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: the folder cannot be read: {error.strerror}")

    for folder, folders, names in os.walk(start, onerror=refuse):
        folders[:] = [name for name in folders if not is_out(Path(folder) / name)]
        for name in names:
            file = Path(folder) / name
            if file.is_file() and not is_out(file):
                yield file


def _matches(path: PurePath, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(str(path) if "/" in p else path.name, p) for p in patterns)
