"""What a fuzz case does to a file's place: a link, something else than a file, a mode, a name."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import stat
import zlib
from collections.abc import Callable
from pathlib import Path


def links(rng: random.Random, path: Path, outside: Path, own: bool) -> str:
    """The file, or the folder that it is in if that is not the command's `own`, made a link."""
    ways: dict[str, Callable[[], str]] = {
        "its copy outside": lambda: _moved(path, outside),
        "another file outside": lambda: str(outside / "keep.txt"),
        "nothing outside": lambda: str(outside / "new.txt"),
        "a folder outside": lambda: str(outside / "folder"),
        "itself": lambda: path.name,
        "its own folder": lambda: ".",
        "/dev/zero": lambda: "/dev/zero",
        "/dev/full": lambda: "/dev/full",
        "the folder, outside": lambda: "",
    }
    way = rng.choice(list(ways))
    if way == "the folder, outside" and path.parent.name != "given" and not own:
        target = _moved(path.parent, outside)
        path.parent.symlink_to(target)
        return f"a link of {path.parent.name}/ to {way}"
    target = ways[way]() or str(outside / "folder")
    _remove(path)
    path.symlink_to(target)
    return f"a link to {way}"


def _moved(path: Path, outside: Path) -> str:
    target = outside / "moved"
    if path.exists():
        shutil.move(path, target)
    return str(target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def kinds(rng: random.Random, path: Path) -> str:
    """Something else than a regular file under its name."""
    _remove(path)
    match rng.choice(("a FIFO", "a FIFO", "a folder", "a socket", "missing")):
        case "a FIFO":
            os.mkfifo(path)
            return "a FIFO"
        case "a folder":
            path.mkdir()
            (path / "keep.txt").write_text("precious")
            return "a folder"
        case "a socket":
            here = os.getcwd()
            os.chdir(path.parent)  # its path may be too long for a socket's
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(path.name)
            os.chdir(here)
            return "a socket"
    return "missing"


def permissions(rng: random.Random, path: Path) -> str:
    """The file or its folder closed to everybody."""
    folder = rng.random() < 0.4 and path.parent.name != "given"
    mode = rng.choice((0, 0, 0o200, 0o444 if folder else 0o100))
    os.chmod(path.parent if folder else path, mode)
    return f"mode {mode:03o}{' of its folder' if folder else ''}"


def reseal(prefix: Path, path: Path) -> None:
    """Let the config.json of a tag record the file as it is now."""
    from light_llm.checkpoint import reading

    config = prefix.with_name(f"{prefix.name}.config.json")
    snapshot = json.loads(config.read_text())
    name = str(path).removeprefix(str(prefix))
    data = path.read_bytes()
    snapshot["checkpoint"]["files"][name] = [len(data), zlib.crc32(data)]
    seal = getattr(reading, "seal", dict)  # versions before had no such checksum
    config.write_text(json.dumps(seal(snapshot)))


def open_again(folder: Path) -> None:
    """Let everything below be read and deleted again."""
    for root, folders, _ in os.walk(folder):
        for name in folders:
            inner = os.path.join(root, name)
            if not stat.S_ISLNK(os.lstat(inner).st_mode):
                os.chmod(inner, 0o700)
