"""A run as `llm-runs` lists it: its tags, how far it came, its best loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from light_jax.runs.folder import TagFiles, has_state, size_on_disk, tags_of
from light_jax.runs.history import History, as_number, read
from light_llm.configtext import parse_mapping, read_config
from light_llm.errors import UserError

CONFIGS = (".yaml", ".yml", "config.json")


@dataclass(frozen=True)
class TagListing:
    name: str
    step: int | None
    val_loss: float | None
    time: float | None  # seconds since 1970
    size: int  # bytes
    problem: str | None  # None: complete
    resumable: bool  # otherwise it has weights alone


@dataclass(frozen=True)
class RunListing:
    path: Path
    step: int
    num_steps: int | None
    finished: bool  # it has a complete `final`, of its last step
    tokens: int
    best: tuple[int, float] | None  # step and validation loss
    time: float | None  # of its last sign of life, in seconds since 1970
    size: int  # bytes of all its tags, shared files once
    tags: tuple[TagListing, ...]
    settings: Mapping[str, Any]
    """Its config; empty where none can be read."""
    history: History


def listing(directory: Path) -> RunListing:
    """What is known of the run in a folder.

    Raises:
        UserError: its metrics.jsonl cannot be read.
    """
    tags, history = tags_of(directory), read(directory)
    losses = history.curve("val/loss")
    known = tuple(_tag(directory, tag, history) for tag in tags)
    best = losses.lowest()
    if best is None:
        recorded = [(t.val_loss, t.step) for t in known if t.val_loss is not None and t.step]
        best = min(((step, loss) for loss, step in recorded), key=lambda b: b[1], default=None)
    settings = _settings(directory, tags)
    num_steps = as_number(settings.get("num_steps"))
    times = [t for t in (history.time, *(tag.time for tag in tags)) if t is not None]
    step = max([history.step, *(tag.step or 0 for tag in known)])
    return RunListing(
        path=directory,
        step=step,
        num_steps=None if num_steps is None else int(num_steps),
        finished=any(t.name == "final" and t.step == step and t.problem is None for t in known),
        tokens=history.tokens,
        best=best,
        time=max(times, default=None),
        size=size_on_disk(directory, tags),
        tags=known,
        settings=settings,
        history=history,
    )


def _tag(directory: Path, tag: TagFiles, history: History) -> TagListing:
    return TagListing(
        tag.name,
        tag.step,
        val_loss(tag, history),
        tag.time,
        tag.size,
        tag.problem,
        tag.problem is None and has_state(directory, tag),
    )


def val_loss(tag: TagFiles, history: History) -> float | None:
    """A tag's own record of its validation loss, else what was logged for its step."""
    if tag.record is None:
        return None
    recorded = tag.record.val_loss
    return history.curve("val/loss").at(tag.record.step) if recorded is None else recorded


def _settings(directory: Path, tags: list[TagFiles]) -> Mapping[str, Any]:
    """The config of the newest tag; without one, what the copied config file says."""
    for tag in reversed(tags):
        if tag.snapshot is not None:
            return tag.snapshot
    for path in sorted(directory.iterdir()):
        if path.name.endswith(CONFIGS) and path.is_file():
            try:
                return parse_mapping(read_config(path), path)
            except UserError:
                continue
    return {}
