"""The tags of a run: finding one, comparing it with a config, loading it."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from light_jax.checkpoint.host_state import is_mine, load_host_state
from light_jax.checkpoint.state import load_arrays, with_arrays
from light_jax.checkpoint.weights import check_weights, load_weights
from light_jax.config import TrainingConfig
from light_jax.data.index import describe_change
from light_jax.parallel.alike import check_alike
from light_jax.parallel.hosts import is_main, together
from light_jax.state import HostState, Params, Tag, TrainState, params_of
from light_llm.checkpoint import digests, layout, reading
from light_llm.errors import UserError
from light_llm.files import disk, given

MUST_MATCH = (
    "model",
    "seq_len",
    "batch_size",
    "gradient_accumulation_steps",
    "seed",
    "window_order",
    "optimizer.type",
    "dtype",
    "bf16_model_weights",
)


START = ".resumed.json"


class Start(NamedTuple):
    """What the last resume in a directory started from, as the file START says."""

    generation: int  # the run's, from then on
    run: str | None  # None where an older version wrote it
    tag: str | None  # in the directory itself; None if the run was resumed from elsewhere


def read_tag(prefix: str | Path) -> Tag:
    """The tag of a prefix.

    Raises:
        UserError: it is not there (lists those that are), or holds no state to resume from.
    """
    if not layout.locate(prefix).complete:
        raise layout.missing(prefix)
    checkpoint = reading.read_checkpoint(prefix)
    if checkpoint.record is None or not checkpoint.files.state.is_dir():
        raise UserError(
            f"{prefix}: holds weights but no state of this trainer to resume from; "
            "start from its weights with init_from"
        )
    return Tag(checkpoint, checkpoint.record)


def own_tags(directory: Path) -> list[Tag]:
    """The tags there that this trainer can resume from, oldest first."""
    # what cannot be read may be another trainer's, or a copy of the weights alone
    found = (tag for _, tag in _read_tags(directory) if isinstance(tag, Tag))
    return sorted(found, key=lambda tag: tag.order)


def _read_tags(directory: Path) -> Iterator[tuple[str, Tag | UserError]]:
    """Each tag there by its name, or why it cannot be read."""
    for name in layout.tags(directory):
        try:
            yield name, read_tag(directory / name)
        except UserError as error:
            yield name, error


def unreadable(directory: Path) -> dict[str, UserError]:
    """Why tags there that are whole, with a state of this trainer, cannot be resumed from."""
    found = {}
    for name, tag in _read_tags(directory):
        files = layout.locate(directory / name)
        ours = files.complete and files.state.is_dir()
        if isinstance(tag, UserError) and ours and not _is_of_another(files.config):
            found[name] = tag
    return found


def _is_of_another(config: Path) -> bool:
    """Whether a tag's config.json is whole and was not written by this trainer."""
    try:
        written = given.read_json(config)
    except UserError:
        return False
    return isinstance(written, dict) and "checkpoint" not in written


def candidates(resume: str, directory: Path) -> list[Tag]:
    """What `--resume` may mean, best first.

    For `auto` these are the tags from which the run in `directory` can go on, the newest first;
    otherwise it is the tag of that prefix.
    """
    if resume != "auto":
        try:
            return [read_tag(resume)]
        except OSError as error:  # a name that no file system takes, a folder without permission
            raise UserError(
                f"--resume {resume}: there is no checkpoint to read ({error.strerror})"
            ) from None
    newest_first = sorted(own_tags(directory), key=lambda tag: tag.order, reverse=True)
    start = read_start(directory)
    if start is None or (newest_first and newest_first[0].generation >= start.generation):
        return newest_first
    if start.tag is None:  # resumed from elsewhere, and stopped before its first tag
        raise UserError(
            f"{directory / START}: this run was resumed from a checkpoint in another folder, and "
            "was stopped before its own first one; name that checkpoint again with --resume PREFIX"
        )
    resumed = read_tag(directory / start.tag)  # the run was stopped before its first tag
    if start.run is not None and resumed.run != start.run:
        raise UserError(
            f"{directory / START}: names {start.tag}, which now belongs to another run; delete it, "
            "and name the checkpoint to resume from with --resume"
        )
    return [resumed, *(tag for tag in newest_first if tag.order < resumed.order)]


def find(resume: str, directory: Path) -> Tag | None:
    """The tag to resume from, its files verified; None where `auto` finds no tag at all.

    Every process calls it and verifies what it wrote. `auto` passes over damaged tags, with a
    warning for each. The directory is not locked yet: if another run writes there, a tag may move
    or be replaced afterwards, and opening the directory is refused.

    Raises:
        UserError: no such tag, or the files of all of them are damaged.
    """
    damage: UserError | None = None
    tags = together(lambda: candidates(resume, directory))
    damaged = together(lambda: unreadable(directory)) if resume == "auto" else {}
    seen = {f"checkpoint {tag.prefix.name}": [tag.run, tag.generation, tag.step] for tag in tags}
    seen |= {f"checkpoint {name}": ["cannot be read"] for name in damaged}
    together(lambda: check_alike("tags", seen))
    for error in damaged.values():
        damage = damage or error
        if is_main():
            warnings.warn(f"{error} (--resume auto passes over this checkpoint)", stacklevel=2)
    for tag in tags:
        try:
            together(lambda tag=tag: digests.verify(tag.checkpoint, is_mine))  # type: ignore[misc]
        except UserError as error:
            damage = damage or error
            if resume == "auto" and is_main():
                warnings.warn(f"{error} (--resume auto does)", stacklevel=2)
            continue
        return tag
    if damage is not None:
        raise damage
    return None


def starts(directory: Path) -> int:
    """How often the run in this directory was started so far: its newest generation, or 0."""
    start = read_start(directory)
    return max([start.generation if start else 0, *(tag.generation for tag in own_tags(directory))])


def write_start(directory: Path, start: Start) -> None:
    """Write down a resume, without a path, so that the directory can be moved."""
    note = {"generation": start.generation, "run": start.run, "resumed": start.tag}
    disk.write_atomically(directory / START, json.dumps(note).encode())


def read_start(directory: Path) -> Start | None:
    """What the last resume in this directory started from.

    Raises:
        UserError: the file is not the note of a resume, or names a tag elsewhere.
    """
    path = directory / START
    if not os.path.lexists(path):
        return None
    remedy = "delete it, and name the checkpoint to resume from with --resume"
    try:
        start = given.read_json(path)
        generation, run, resumed = start["generation"], start.get("run"), start["resumed"]
        complete = isinstance(resumed, str) or (resumed is None and isinstance(run, str))
        counted = type(generation) is int and 0 <= generation < reading.MOST_STARTS
        if not counted or not complete or not isinstance(run, str | None):
            raise ValueError("not the note of a resume")
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: damaged; {remedy}") from None
    if run is None:  # an older version wrote an absolute prefix
        folder, resumed = os.path.split(resumed)
        if os.path.realpath(folder) != os.path.realpath(directory):
            return Start(generation, None, None)  # elsewhere, or this folder was moved since
    if resumed is not None and not given.is_name(resumed):
        raise UserError(f"{path}: names {resumed!r}, which is not a checkpoint's name; {remedy}")
    return Start(generation, run, resumed)


def check_resumable(
    tag: Tag, cfg: TrainingConfig, fingerprint: list[dict[str, Any]]
) -> tuple[HostState, list[str]]:
    """Compare a verified tag's config and shards with the present ones.

    Returns:
        The state on the host, and a line for each setting that changed, as it may.

    Raises:
        UserError: a setting or a shard changed that must not.
    """
    host, changes, refused = compare(tag, cfg, fingerprint)
    if refused:
        raise UserError(
            f"{tag.prefix}: cannot be resumed with this config; undo these changes, or start a "
            "new run from its weights with init_from:\n  " + "\n  ".join(refused)
        )
    files = tag.checkpoint.files
    check_weights(files.weights, cfg.model)
    if cfg.ema_decay is not None and files.average is not None:
        check_weights(files.average.weights, cfg.model)
    elif cfg.ema_decay is not None:
        changes["ema"] = f"the average of ema_decay starts from the weights of step {tag.step}"
    if {"val_data", "eval_steps", "checkpoint_dir"} & changes.keys():
        # it was for other tokens, or another directory
        host.best_val_loss, host.best_val_step, host.evaluations_since_best = None, None, 0
    return host, list(changes.values())


def compare(
    tag: Tag, cfg: TrainingConfig, fingerprint: list[dict[str, Any]]
) -> tuple[HostState, dict[str, str], list[str]]:
    """(the tag's state on the host, each setting that changed, what makes it another run).

    Settings are lines `key: old -> new` by key; what makes it another run is a list of such lines.
    """
    host = load_host_state(tag.checkpoint.files.state)
    changes = dict(_changes(tag.checkpoint.snapshot, cfg.model_dump(mode="json")))
    refused = [
        line
        for key, line in changes.items()
        if any(key == fixed or key.startswith(f"{fixed}.") for fixed in MUST_MATCH)
    ]
    shards = describe_change(host.fingerprint, fingerprint)
    if shards is not None:
        refused.append(f"train_data: {shards}")
    return host, changes, refused


def _changes(
    old: Mapping[str, Any], new: Mapping[str, Any], at: str = ""
) -> Iterator[tuple[str, str]]:
    """(key, `key: old -> new`) of every setting that differs."""
    for name in [*old, *(name for name in new if name not in old)]:
        key, before, after = f"{at}{name}", old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _changes(before, after, f"{key}.")
        elif before != after:
            yield key, f"{key}: {json.dumps(before)} -> {json.dumps(after)}"


def load(tag: Tag, cfg: TrainingConfig, abstract: TrainState, shardings: TrainState) -> TrainState:
    """The state at a tag whose files are verified, laid out by `shardings`; all processes call it.

    Raises:
        UserError: the files do not hold what this config needs.
    """
    files = tag.checkpoint.files
    weights = together(
        lambda: load_weights(files.weights, cfg.model, shardings.weights, verified=True)
    )
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )
    average = _average(files, cfg, weights, shardings)
    arrays = together(lambda: load_arrays(files.state, placed))
    params, master = params_of(cfg, weights)
    state = with_arrays(placed, arrays)
    return dataclasses.replace(state, params=params, master=master, average=average)


def _average(
    files: layout.Files, cfg: TrainingConfig, weights: Params, shardings: TrainState
) -> Params | None:
    """The average of a tag's weights; where it has none, it starts from them."""
    if cfg.ema_decay is None:
        return None
    if files.average is None:
        return jax.tree.map(jnp.copy, weights)  # a step donates each array, so none is there twice
    path = files.average.weights
    return together(lambda: load_weights(path, cfg.model, shardings.weights, verified=True))
