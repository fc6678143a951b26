"""The stage: how a folder that this program made is recognised.

A stage is emptied at the end of a run, so it must be recognised first: it carries a mark, written
when it is made. A stage from a version before the mark is recognised by its content, which is only
what a run writes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from light_llm.errors import UserError
from light_llm.files import given
from light_llm.files.disk import create
from light_llm.preprocess.manifest import MANIFEST, TOKENIZER
from light_llm.preprocess.output import TOKENIZER_NAMES
from light_llm.preprocess.shards import SHARD_NAME, TEMPORARY

LOCK, JOURNAL, MOVES = "lock", "journal.jsonl", "moves.json"
NEW, OLD = "new", "old"
PLAN, PARTS = "plan.json", "parts"
"""What --prepare leaves for the parts of a run, and a folder of each: its own lock, journal and
`new`."""
HASHES = "hashes"
"""The hashes of the texts in the shards that the journal names."""
COPIES = "copies"
"""Which documents --dedupe drops."""
PROGRESS = "progress.json"
LOADED = "loaded"
"""The tokenizer of tokenizer_path."""
MARK = "made-by-llm-preprocess"
MARK_TEXT = b"llm-preprocess made this folder, and deletes it with all that is in it.\n"

_UNMARKED = (PARTS, HASHES, COPIES)
"""Folders that are younger than the mark."""
# "moves.tmp": what versions before the mark wrote moves.json by
_WRITTEN = (JOURNAL, MOVES, MARK, PLAN)
_FILES = (*_WRITTEN, "moves.tmp", *(f".{name}.tmp" for name in _WRITTEN))
_FOLDERS = (NEW, OLD, LOADED, *_UNMARKED)


class Damaged(UserError):
    """What a stopped run left differs from its journal."""


def check_stage(stage: Path) -> None:
    """Check the folder `stage` before anything is written or deleted there.

    With a mark the lock is not checked: it is opened without following links.

    Raises:
        UserError: something in it has one of our names but another kind (a link, for example); or
            there is no mark, and something that no run wrote.
    """
    marked = is_marked(stage)
    for path in sorted(stage.iterdir()):
        if path.name == LOCK:
            if not marked and path.is_file() and not path.is_symlink() and path.stat().st_size:
                _refuse(path, stage, "is not empty")
        elif path.name in _FILES:
            _check_kind(path, stage, is_folder=False)
        elif path.name in _FOLDERS:
            _check_kind(path, stage, is_folder=True)
            for below in _walk(path):
                _check_kind(below, stage, is_folder=below.is_dir() and not below.is_symlink())
                if not marked and not below.is_dir() and not _is_ours(below.relative_to(stage)):
                    _refuse(below, stage, "is not a file of a run")
        elif not marked:
            _refuse(path, stage, "is not a file of a run")


def check_part(stage: Path, folder: Path) -> None:
    """Check the folder of one part before anything is written or deleted there.

    Raises:
        UserError: a file is where a folder must be, or something is neither file nor folder.
    """
    for path in (stage, stage / PARTS, folder):
        _check_kind(path, stage, is_folder=True)
    for below in _walk(folder):
        _check_kind(below, stage, is_folder=below.is_dir() and not below.is_symlink())


def is_marked(stage: Path) -> bool:
    path = stage / MARK
    if path.is_symlink() or not path.is_file():
        return False
    try:
        return given.read_bytes(path, len(MARK_TEXT)) == MARK_TEXT
    except UserError:
        return False


def mark(stage: Path) -> None:
    """Mark the folder as ours, so that it may be emptied."""
    if not is_marked(stage):
        with create(stage / MARK) as file:
            file.write(MARK_TEXT)


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):  # a link to a folder is listed and not entered
        for name in folders + names:
            yield Path(root, name)


def _is_ours(path: Path) -> bool:
    """Whether a run from before the mark wrote a file with this path, relative to its stage."""
    if path.parts[0] in _UNMARKED:
        return False
    if path.parts[0] == LOADED:
        return len(path.parts) == 2 and path.name in TOKENIZER_NAMES
    if path.parts[1] == TOKENIZER:
        return len(path.parts) == 3 and path.name in TOKENIZER_NAMES
    if len(path.parts) == 2:
        return path.name == MANIFEST
    return SHARD_NAME.fullmatch(path.name.removesuffix(TEMPORARY)) is not None


def _check_kind(path: Path, stage: Path, is_folder: bool) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return  # another run is at work, and it holds the lock
    if not (stat.S_ISDIR(mode) if is_folder else stat.S_ISREG(mode)):
        _refuse(path, stage, f"is {given.kind_of(path)}")


def _refuse(path: Path, stage: Path, what: str) -> None:
    raise UserError(
        f"{path}: {what}, so llm-preprocess did not put it there, and in {stage} it deletes; move "
        "it away, or choose another --output"
    )
