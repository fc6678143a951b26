"""Which run wrote something in a checkpoint folder: nothing else is deleted or replaced. No JAX.

A staging folder names its run in its MARK. A tag names it in its config.json, in the .TAG.deleting
that this file becomes, and in its state's metadata.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from light_llm.checkpoint import parts
from light_llm.checkpoint.layout import CONFIG, STATE, WEIGHTS, committed_dir, locate, tags
from light_llm.checkpoint.tokenizer import TOKENIZER
from light_llm.errors import UserError
from light_llm.files import given

STEP_TAG = re.compile(r"step(\d{7,})")
NONFINITE = re.compile(r"nonfinite-step\d+")
MARK = ".light-llm.json"
"""A file in each folder that a run makes to write in: it names the run."""
NOTE = "_CHECKPOINT_METADATA"
"""orbax's file in a state, with the host's part of the run in it."""


def step_tag(step: int) -> str:
    return f"step{step:07d}"


def is_own_name(tag: str) -> bool:
    """Whether a run writes tags with that name."""
    return tag in ("best", "final") or STEP_TAG.fullmatch(tag) is not None


def is_own_staging_name(name: str) -> bool:
    """Whether a run stages a tag, a report or its tokenizer with that name."""
    return is_own_name(name) or name == TOKENIZER or NONFINITE.fullmatch(name) is not None


def deleting_file(directory: Path, tag: str) -> Path:
    """What a tag's config.json becomes while the tag is deleted."""
    return directory / f".{tag}.deleting"


def run_of_folder(folder: Path) -> str | None:
    """The run whose mark is in a folder; None without one."""
    mark = folder / MARK
    if folder.is_symlink() or mark.is_symlink():
        return None
    try:
        return _text(given.read_json(mark), "run")
    except UserError:
        return None


def run_of_config(path: Path) -> str | None:
    """The run that a tag's config.json names; None if it is not there or names none."""
    if path.is_symlink():
        return None
    try:
        record = given.read_json(path)
    except UserError:
        return None
    return _text(record.get("checkpoint"), "run") if isinstance(record, dict) else None


def run_of_state(path: Path) -> str | None:
    """The run that wrote the folder; None if it is not a state, or does not name its run."""
    if path.is_symlink():
        return None
    try:
        note = given.read_json(path / NOTE)
        run = note["custom_metadata"]["run"]
    except (UserError, KeyError, TypeError):
        return None
    return run if isinstance(run, str) else None


def _text(value: Any, key: str) -> str | None:
    text = value.get(key) if isinstance(value, dict) else None
    return text if isinstance(text, str) else None


def is_fresh(directory: Path) -> bool:
    """Whether no run has a tag there."""
    names = [tag for tag in tags(directory) if is_own_name(tag)]
    return all(run_of_config(locate(directory / tag).config) is None for tag in names)


def may_empty(folder: Path, run: str, *, fresh: bool) -> bool:
    """Whether `run` may delete a folder that was made to write in.

    It may delete its own, and in a fresh directory those of any run, since that one left no tag. A
    crash can leave the folder without a mark, or with half of one, but then with nothing else.
    """
    if folder.is_symlink() or not folder.is_dir():
        return False
    names = {entry.name for entry in folder.iterdir()}
    tag = folder.name.removeprefix(".").removesuffix(".writing")
    members = {f"{tag}{ending}" for ending in (WEIGHTS, STATE, CONFIG)}
    # orbax's threads may still write when a save has failed and its folder is deleted
    late = {name for name in names if name.startswith(f"{tag}{STATE}.orbax-checkpoint-tmp")}
    if names - late <= {MARK}:
        return True
    if not fresh and is_own_name(tag) and names <= members:
        return True  # of a version without marks, in a directory that holds this run's tags
    owner = run_of_folder(folder)
    return owner is not None and (fresh or owner == run)


def is_committed_by(committed: Path, tag: str, run: str) -> bool:
    """Whether `run` left this .TAG.committed, by its config.json.

    Without one, everything in it is published, and the folder itself is left.
    """
    if not committed.is_dir():
        return False
    config = committed / f"{tag}{CONFIG}"
    if config.exists():
        return run_of_config(config) == run
    return all(entry.name == MARK for entry in committed.iterdir())


def check_place(directory: Path, tag: str, run: str) -> None:
    """Check that `run` may write a tag: its place is free, or holds one of the same run, even half.

    Raises:
        UserError: another run, or somebody else, wrote what is there.
    """
    config, state = directory / f"{tag}{CONFIG}", directory / f"{tag}{STATE}"
    deleting = deleting_file(directory, tag)
    names = (tag, f"{tag}{parts.AVERAGE}")
    another = directory / f"{tag}{parts.AVERAGE}{CONFIG}"
    if os.path.lexists(another):  # a tag with the name that this tag's average would have
        raise in_the_way(another)
    weights = [path for name in names for path in parts.files_there(directory, name)]
    there = [
        path
        for path in (config, state, *weights, deleting)
        if os.path.lexists(path) and not path.is_symlink()  # only the link itself is replaced
    ]
    if deleting in there and run_of_config(deleting) != run:
        raise in_the_way(deleting)
    half_moved = committed_dir(directory, tag) / config.name
    configs = (run_of_config(config), run_of_config(deleting), run_of_config(half_moved))
    if there and run not in (*configs, run_of_state(state)):
        raise in_the_way(there[0])


def in_the_way(path: Path) -> UserError:
    return UserError(
        f"{path}: is in the way, and nothing shows that this run wrote it; move it away (a save "
        "that was cut short, of an older version or of another run, can be deleted)"
    )
