"""The folder of an export: written under a hidden name beside it, checked, then renamed.

.NAME.writing/   written and checked; a file in it says that we made it
.NAME.old/       for an instant, an earlier export that the new one replaces
NAME/            whole, or not there
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from light_llm.checkpoint.digests import digest
from light_llm.errors import UserError
from light_llm.files import disk, given

CONFIG = "config.json"
MARKER = "light_llm_export"
"""The key of config.json, and of the metadata in weights, by which an export is recognised."""
MARK = ".made-by-llm-convert"
REMEDY = "give a new or an empty folder, or move this one away"


def check_destination(out: Path) -> None:
    """Check that an export may be put at `out`: nothing is there, or an unchanged export.

    Raises:
        UserError: a file, a link, or a folder with anything that no export put there.
    """
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir():
        raise UserError(f"{out}: is {given.kind_of(out)}, and a folder is to be written; {REMEDY}")
    if any(out.iterdir()) and (reason := why_not_ours(out)):
        raise UserError(f"{out}: is not empty, and {reason}; {REMEDY}")


def why_not_ours(folder: Path) -> str | None:
    """Why a folder may not be replaced: what is in it that no export put there, or that somebody
    has changed since; None for an export.

    A model that was trained further and saved again has the key in its config.json too, but not in
    its weights.
    """
    path = folder / CONFIG
    config = given.read_json(path) if path.is_file() and not path.is_symlink() else None
    export = config.get(MARKER) if isinstance(config, dict) else None
    if not isinstance(export, dict) or not isinstance(export.get("files"), dict):
        return "it is not an earlier export"
    for path in sorted(folder.iterdir(), key=lambda path: path.suffix != ".safetensors"):
        if path.name == CONFIG:
            continue
        if path.is_symlink() or not path.is_file():
            return f"{path.name} in it is not of the export"
        if path.suffix == ".safetensors":
            if not _is_marked(path):
                return f"{path.name} in it was saved by something else"
        elif path.name not in export["files"]:
            return f"{path.name} in it is not of the export"
        elif list(digest(path)) != export["files"][path.name]:
            return f"{path.name} in it was changed since the export"
    return None


def _is_marked(weights: Path) -> bool:
    from safetensors import safe_open

    try:
        with given.foreign(str), safe_open(weights, framework="numpy") as file:
            return MARKER in (file.metadata() or {})
    except UserError:
        return False


def seal(folder: Path, config: Mapping[str, Any], export: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a folder with our key: `export`, and the digests of its small files."""
    files = {
        path.name: list(digest(path))
        for path in sorted(folder.iterdir())
        if path.suffix != ".safetensors" and path.name not in (CONFIG, MARK)
    }
    return {**config, MARKER: {**export, "files": files}}


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` to write in; it takes the name `out` when the block ends.

    After an error or a signal it is gone, and what was at `out` is as it was.

    Raises:
        UserError: see `check_destination`; or another export writes there.
    """
    stage, old = (out.with_name(f".{out.name}.{ending}") for ending in ("writing", "old"))
    out.parent.mkdir(parents=True, exist_ok=True)
    _recover(out, old)
    check_destination(out)
    with _held(stage, out):
        try:
            empty(stage)
            yield stage
            disk.flush(stage)
            check_destination(out)  # it may have been used since
            (stage / MARK).unlink()
            _replace(out, stage, old)
        except BaseException:
            disk.remove(stage)
            raise
    disk.sync(out.parent)
    disk.remove(old)


def empty(stage: Path) -> None:
    """Delete all but the mark."""
    for path in stage.iterdir():
        if path.name != MARK:
            disk.remove(path)


@contextlib.contextmanager
def _held(stage: Path, out: Path) -> Iterator[None]:
    """Make the folder `stage`, or take over what a killed export left, and hold its lock."""
    with disk.held(stage, f"{out}: another llm-convert writes there; let it end first"):
        left = [path.name for path in stage.iterdir()]
        if left and MARK not in left:
            raise UserError(
                f"{stage}: holds files that llm-convert did not put there, and it writes and "
                "deletes in this folder; move it away"
            )
        (stage / MARK).touch()
        yield


def _recover(out: Path, old: Path) -> None:
    """Finish what an export that was killed between two renames left."""
    if old.is_symlink() or not old.is_dir():
        return
    if not os.path.lexists(out):
        old.rename(out)
    elif why_not_ours(old) is None:
        disk.remove(old)


def _replace(out: Path, stage: Path, old: Path) -> None:
    if not out.exists() or not any(out.iterdir()):
        stage.rename(out)  # over an empty folder too
        return
    try:
        out.rename(old)
        stage.rename(out)
    except BaseException:
        if not out.exists():
            old.rename(out)
        raise
