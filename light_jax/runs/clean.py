"""What of a run's folder can go: what a crash left, tags in parts, older step tags.

Only what the run itself wrote, by the rules of light_jax.checkpoint.ownership. Never `best` and
`final`, never a committed checkpoint that waits to be published, never what `--resume auto` needs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from light_jax.checkpoint import protocol
from light_jax.checkpoint.ownership import (
    STEP_TAG,
    deleting_file,
    is_fresh,
    is_own_name,
    is_own_staging_name,
    may_empty,
    run_of_config,
    run_of_state,
)
from light_jax.reporting.metrics import NAME
from light_jax.runs import notes, report
from light_jax.runs.folder import TagFiles, files_below, tags_of
from light_llm.checkpoint import layout
from light_llm.checkpoint.layout import CONFIG, STATE
from light_llm.files import given
from light_llm.files.disk import remove, sync

TEMPORARY = tuple(f".{name}.tmp" for name in (NAME, report.NAME, notes.STARTS, ".resumed.json"))
"""Files that a crash can leave beside those that a run replaces."""
RESUMED = ".resumed.json"


@dataclass(frozen=True)
class Item:
    """Something that can be deleted."""

    directory: Path
    name: str  # of a tag, or of the file or folder itself
    why: str
    size: int  # bytes that no remaining tag shares
    tag: bool
    run: str  # that wrote it, or "" where that does not matter

    @property
    def path(self) -> Path:
        return self.directory / self.name


def plan(directory: Path, keep: int | None) -> list[Item]:
    """What would be deleted in the folder of a run.

    Args:
        keep: how many step tags stay, the newest; None: all.
    """
    tags = tags_of(directory)
    run = next((tag.record.run for tag in reversed(tags) if _is_ours(tag) and tag.record), "")
    items = [*_leftovers(directory, run), *_in_parts(directory, tags, run)]
    if keep is not None:
        items += _older(directory, tags, run, keep)
    return items


def _is_ours(tag: TagFiles) -> bool:
    return is_own_name(tag.name) and tag.record is not None and bool(tag.record.run)


def _leftovers(directory: Path, run: str) -> Iterator[Item]:
    """Staging folders and temporary files of saves and pages that were cut short."""
    fresh = is_fresh(directory)
    for path in sorted(directory.glob(".*.writing")):
        tag = path.name[1:].removesuffix(".writing")
        if is_own_staging_name(tag) and may_empty(path, run, fresh=fresh):
            yield _item(path, "a save that was cut short")
    for name in TEMPORARY:
        path = directory / name
        if path.is_file() and not path.is_symlink():
            yield _item(path, "a file that was not finished")


def _in_parts(directory: Path, tags: list[TagFiles], run: str) -> Iterator[Item]:
    """Step tags that cannot be used, and whose rest names this run."""
    for tag in tags:
        name = tag.name
        there = layout.published(directory, name) or os.path.lexists(deleting_file(directory, name))
        broken = tag.problem is not None and there
        if not broken or not STEP_TAG.fullmatch(name) or not run:
            continue
        owners = (
            run_of_config(directory / f"{name}{CONFIG}"),
            run_of_config(deleting_file(directory, name)),
            run_of_state(directory / f"{name}{STATE}"),
        )
        if run in owners:
            yield _of_tag(directory, tags, tag, run, tag.problem or "")


def _older(directory: Path, tags: list[TagFiles], run: str, keep: int) -> Iterator[Item]:
    """All complete step tags of the run but the newest `keep`."""
    needed = _resumed_from(directory)
    whole = [
        tag for tag in tags if tag.problem is None and tag.record and tag.record.run == run and run
    ]
    steps = [tag for tag in whole if STEP_TAG.fullmatch(tag.name)]
    for tag in steps[: len(steps) - keep]:
        is_needed = tag.name == needed or (tag is whole[-1])
        if not is_needed:
            yield _of_tag(directory, tags, tag, run, f"not among the newest {keep}")


def _resumed_from(directory: Path) -> str | None:
    """The tag that the last resume started from: `--resume auto` may need it."""
    path = directory / RESUMED
    if not os.path.lexists(path):
        return None
    note = given.read_json(path)
    name = note.get("resumed") if isinstance(note, dict) else None
    return os.path.basename(name) if isinstance(name, str) else None


def _item(path: Path, why: str) -> Item:
    size = sum(size for _, size in files_below(path))
    return Item(path.parent, path.name, why, size, tag=False, run="")


def _of_tag(directory: Path, tags: list[TagFiles], tag: TagFiles, run: str, why: str) -> Item:
    others = {
        key for other in tags if other.name != tag.name for key, _ in _files(directory, other.name)
    }
    size = sum(size for key, size in _files(directory, tag.name) if key not in others)
    return Item(directory, tag.name, why, size, tag=True, run=run)


def _files(directory: Path, name: str) -> Iterator[tuple[tuple[int, int], int]]:
    for path in layout.published(directory, name):
        yield from files_below(path)


def clean(directory: Path, keep: int | None) -> list[Item]:
    """Delete what `plan` says, while no run writes there. Returns it.

    Raises:
        UserError: a run is writing there.
    """
    with protocol.one_writer(directory) as lock:
        items = plan(directory, keep)
        for item in items:
            protocol.check_lock(directory, lock)
            _delete(item)
    return items


def _delete(item: Item) -> None:
    if not item.tag:
        protocol.discard(item.path) if item.path.is_dir() else remove(item.path)
    elif any(
        run_of_config(path) == item.run
        for path in (
            item.directory / f"{item.name}{CONFIG}",
            deleting_file(item.directory, item.name),
        )
    ):
        protocol.delete(item.directory, item.name, item.run)
    else:  # its state alone names the run
        protocol.remove_members(item.directory, item.name)
    sync(item.directory)
