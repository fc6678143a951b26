"""A run's folder: which tags are there, whole or in parts. Reads only, beside a run or not."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from light_jax.reporting.metrics import NAME
from light_llm.checkpoint import layout, parts, reading
from light_llm.checkpoint.layout import CONFIG, STATE, WEIGHTS
from light_llm.errors import UserError

_UNDER_WAY = re.compile(r"\.(.+)\.(writing|committed|deleting)")
NOT_RUNS = ("hf", "tokenizer", "profile", "wandb", "__pycache__")
"""Folders that are not looked into."""


@dataclass(frozen=True)
class TagFiles:
    """What is known of a tag without reading its weights."""

    name: str
    problem: str | None
    """Why it cannot be used; None where it is complete."""
    record: reading.Record | None = None
    """None where it is incomplete or another trainer's."""
    snapshot: Mapping[str, Any] | None = None
    time: float | None = None  # when it was written, in seconds since 1970
    size: int = 0  # bytes, what it shares with other tags included

    @property
    def step(self) -> int | None:
        return None if self.record is None else self.record.step

    @property
    def order(self) -> tuple[int, int, str]:
        """Older first; without a record before all others."""
        record = self.record or reading.Record()
        return record.generation, record.step, self.name


def is_run(directory: Path) -> bool:
    """Whether a run wrote here: a metrics.jsonl, or at least the config of a tag."""
    return (directory / NAME).is_file() or bool(layout.tags(directory))


def find_runs(directory: Path) -> list[Path]:
    """The folders of runs at or below `directory`, sorted; links to folders are not followed.

    Raises:
        UserError: it is no folder, or no run is there.
    """
    if not directory.is_dir():
        what = "is not a folder" if directory.exists() else "there is no such folder"
        raise UserError(f"{directory}: {what}; name a run's checkpoint_dir, or a folder of some")
    found = []
    for root, folders, _ in os.walk(directory):
        at = Path(root)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not name.endswith(STATE) and name not in NOT_RUNS
        )
        with contextlib.suppress(OSError):
            if is_run(at):
                found.append(at)
    if not found:
        raise UserError(
            f"{directory}: no run is there or below, which a metrics.jsonl or a checkpoint would "
            "show; name the checkpoint_dir of a run, or a folder that holds some"
        )
    return found


def tags_of(directory: Path) -> list[TagFiles]:
    """All tags, those of which only parts are there too, oldest first."""
    names: set[str] = set()
    for entry in _entries(directory):
        name, under_way = entry.name, _UNDER_WAY.fullmatch(entry.name)
        if under_way:
            names.add(under_way[1])
            continue
        tag = layout.tag_of_file(name)
        if tag is not None and not name.startswith("."):
            names.add(tag)
    return sorted((look(directory, name) for name in names), key=lambda tag: tag.order)


def _entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        yield from entries


def look(directory: Path, name: str) -> TagFiles:
    """One tag: its record, and whether each of its files is there with its size."""
    files = layout.locate(directory / name)
    size, time = size_of(files), _time_of(files.config) or _time_of(files.weights)
    if not files.complete:
        return TagFiles(name, _incomplete(directory, files), time=time, size=size)
    try:
        seen = reading.read_checkpoint(directory / name)
    except (UserError, OSError) as error:
        return TagFiles(name, str(error).partition("\n")[0], time=time, size=size)
    return TagFiles(name, _damage(seen), seen.record, seen.snapshot, time, size)


def _incomplete(directory: Path, files: layout.Files) -> str:
    if (directory / f".{files.tag}.writing").is_dir():
        return "being written, or cut short"
    if os.path.lexists(directory / f".{files.tag}.deleting"):
        return "being deleted, or cut short"
    lacking = [
        end
        for end, path in ((WEIGHTS, files.weights), (CONFIG, files.config))
        if not path.is_file()
    ]
    return f"incomplete: no {' and no '.join(f'{files.tag}{end}' for end in lacking)}"


def _damage(seen: reading.Checkpoint) -> str | None:
    """What of a complete tag's files has another size than was written, which a look can tell."""
    files = seen.files
    for name, member in seen.record.files.items() if seen.record else ():
        ending, _, inner = name.partition("/")
        if ending == STATE and not files.state.is_dir():
            return None  # a copy of the weights to give away
        at = {STATE: files.state}.get(ending)
        if parts.is_average(name):
            if files.average is None:
                return f"damaged: no {files.tag}{name}"
            at = parts.place(files.average.weights, f"{files.tag}{name}")
        elif parts.is_weights(name):
            at = parts.place(files.weights, f"{files.tag}{name}")
        try:
            there = None if at is None else os.lstat(at / inner if inner else at)
        except (OSError, ValueError):
            return f"damaged: no {files.tag}{name}"
        if there is not None and there.st_size != member.size and not os.path.islink(at or ""):
            return f"damaged: {files.tag}{name} has {there.st_size} of {member.size} bytes"
    return None


def has_state(directory: Path, tag: TagFiles) -> bool:
    """Whether a run can be resumed from it; otherwise it has weights alone."""
    return layout.locate(directory / tag.name).state.is_dir()


def size_of(files: layout.Files) -> int:
    """Bytes of a tag's files, staged ones included."""
    staged = files.directory / f".{files.tag}.writing"
    members = (files.weights, files.state, files.config, files.torch_state, staged)
    average = (files.average.weights, *_parts(files.average)) if files.average else ()
    paths = [*members, *_parts(files), *average]
    return sum(size for path in paths for _, size in files_below(path))


def _parts(files: layout.Files) -> Iterator[Path]:
    return (part.path for part in files.parts)


def size_on_disk(directory: Path, tags: list[TagFiles]) -> int:
    """Bytes of these tags together; files that they share count once."""
    seen: dict[tuple[int, int], int] = {}
    for tag in tags:
        for path in layout.published(directory, tag.name):
            seen.update(files_below(path))
        for stage in ("writing", "committed"):
            seen.update(files_below(directory / f".{tag.name}.{stage}"))
    return sum(seen.values())


def files_below(path: Path) -> Iterator[tuple[tuple[int, int], int]]:
    """((device, inode), bytes) of a file, or of each file in a folder; links are not followed."""
    with contextlib.suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            stat = os.lstat(path)
            yield (stat.st_dev, stat.st_ino), stat.st_size
            return
        for root, _, names in os.walk(path):
            for name in names:
                stat = os.lstat(os.path.join(root, name))
                yield (stat.st_dev, stat.st_ino), stat.st_size


def _time_of(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
