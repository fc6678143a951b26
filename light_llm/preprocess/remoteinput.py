"""The objects of an --input that is a URL: the object itself, all below a folder, or what a glob
matches, as `files` finds them on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from light_llm.errors import UserError
from light_llm.files import ranges, remote, urls
from light_llm.files.ranges import RemotePath

IsOut = Callable[[PurePosixPath], bool]


def find_objects(url: str, is_out: IsOut) -> tuple[list[tuple[PurePosixPath, RemotePath]], bool]:
    """What a URL gives, each with its path from the folder, sorted; and whether it is one object.

    Args:
        is_out: whether a file or folder, by its path from the folder, is left out. What lies below
            such a folder is too.

    Raises:
        UserError: such a URL is not taken, there is nothing, or its store cannot be asked.
    """
    try:
        urls.check(url)
    except ValueError as error:
        raise UserError(f"--input {urls.without_secrets(url)}: {error}") from None
    if urls.parts(url).scheme in ("http", "https"):
        return [(PurePosixPath(urls.name(url)), _of_the_web(url))], True
    folder, pattern = _parted(url)
    named = None if url.endswith("/") else _object(url)
    if named is not None:
        return [(PurePosixPath(named.name), named)], True
    found = [
        (path, each)
        for path, each in _below(folder)
        if _matches(path.parts, pattern) and not any(is_out(way) for way in _ways(path))
    ]
    return sorted(found, key=lambda one: one[0].parts), False


def _of_the_web(url: str) -> RemotePath:
    if urls.has_magic(url) or url.endswith("/"):
        kind = "folder" if url.endswith("/") else "glob"
        raise UserError(
            f"--input {url}: is a {kind}, and a web server does not list its files; name each file "
            "with --input"
        )
    return ranges.found(url)


def _object(url: str) -> RemotePath | None:
    """The object of this very name; None where it is a folder, or there is none."""
    remote.forgotten(url)
    try:
        info = remote.tried(url, lambda fs: fs.info(url))
    except remote.Missing:
        if not urls.has_magic(url):
            raise
        return None
    return ranges.described(url, info) if info.get("type") == "file" else None


def _parted(url: str) -> tuple[str, list[str]]:
    """The folder that a URL names, or its glob starts in, and the parts of the glob."""
    scheme, rest = urls.parts(url)
    parts = rest.strip("/").split("/")
    fixed = next((n for n, part in enumerate(parts) if urls.is_magic(part)), len(parts))
    if not fixed:
        raise UserError(f"--input {url}: the name of a bucket must be written out")
    pattern = [part if part == "**" else part.replace("**", "*") for part in parts[fixed:]]
    return f"{scheme}://{'/'.join(parts[:fixed])}", pattern


def _below(folder: str) -> list[tuple[PurePosixPath, RemotePath]]:
    """All objects below a folder, each with its path from there."""
    remote.forgotten(folder)

    def find(fs: Any) -> tuple[str, dict[str, Any]]:
        return fs._strip_protocol(folder).rstrip("/"), fs.find(folder, detail=True)

    root, infos = remote.tried(folder, find)
    found = []
    for name, info in infos.items():
        if info.get("type") == "file" and not name.endswith("/"):
            inner = name.removeprefix(root).lstrip("/")
            found.append((PurePosixPath(inner), ranges.described(f"{folder}/{inner}", info)))
    return found


def _ways(path: PurePosixPath) -> list[PurePosixPath]:
    """The path, and the folders on the way to it."""
    return [path, *list(path.parents)[:-1]]


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a glob matches a path or a folder on the way to it."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_matches(parts[n:], pattern[1:]) for n in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
