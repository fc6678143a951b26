"""Whether a run may write in its checkpoint_dir, before anything is written there."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from light_jax.checkpoint.ownership import (
    STEP_TAG,
    check_place,
    in_the_way,
    is_fresh,
    is_own_name,
    may_empty,
)
from light_jax.checkpoint.protocol import writing_dir
from light_jax.checkpoint.state import not_for_orbax
from light_jax.config import TrainingConfig
from light_jax.state import Tag
from light_llm.checkpoint import layout, reading
from light_llm.errors import UserError


def check_writable(cfg: TrainingConfig, resumed: Tag | None, *, probe: bool = True) -> None:
    """Refuse, before anything is written, a directory that cannot take this run.

    Args:
        probe: make a folder there and remove it; otherwise only the permissions are asked for.

    Raises:
        UserError: it is a file, is not writable, holds another run's checkpoints, or holds parts of
            some where this run is going to write.
    """
    directory = Path(cfg.checkpoint_dir)
    named = f"checkpoint_dir={str(directory)!r}"
    if (reason := not_for_orbax(directory)) is not None:
        raise UserError(
            f"{named}: {reason}, so no checkpoint can be written there; use another folder"
        )
    existing = nearest_existing(directory)
    if not existing.is_dir():
        if existing.exists():
            raise UserError(f"{named}: {existing} is not a folder; use another one")
        raise UserError(
            f"{named}: {existing} is a link to {os.readlink(existing)}, which is not there; make "
            "that folder, or use another one"
        )
    try:
        if probe:
            os.rmdir(tempfile.mkdtemp(prefix=".light-llm-probe-", dir=existing))
        elif not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(
            f"{named} cannot be written ({error.strerror}); use another folder"
        ) from None
    others = {name for name in layout.tags(directory) if is_own_name(name)}
    # A copy of the folder holds tags of the same run, which are not this folder's own.
    here = continues_here(directory, resumed)
    if here and resumed is not None:
        others = {name for name in others if _is_of_another_run(directory / name, resumed.run)}
    if others:
        raise UserError(
            f"{named} holds a run already ({', '.join(sorted(others))}); "
            "continue that one with --resume auto, or use another checkpoint_dir"
        )
    _check_free(cfg, resumed, here)


def nearest_existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    while not path.exists() and not path.is_symlink():
        path = path.parent
    return path


def _check_free(cfg: TrainingConfig, resumed: Tag | None, here: bool) -> None:
    """Check that this run may write the tags that it is going to write.

    Raises:
        UserError: part of a tag that another run wrote is in the way.
    """
    directory, first = Path(cfg.checkpoint_dir), 0 if resumed is None else resumed.step
    run = resumed.run if here and resumed else ""
    names = (path.name for path in directory.glob("*.s*"))
    there = {tag for name in names if (tag := layout.tag_of_file(name)) is not None}
    staged = {path.name[1:].removesuffix(".writing") for path in directory.glob(".*.writing")}
    fresh = is_fresh(directory)
    for tag in sorted(there | staged):
        step = STEP_TAG.fullmatch(tag)
        if tag in ("best", "final") or (step and first < int(step[1]) <= cfg.num_steps):
            check_place(directory, tag, run)
            staging = writing_dir(directory, tag)
            if staging.exists() and not may_empty(staging, run, fresh=fresh):
                raise in_the_way(staging)


def continues_here(directory: Path, resumed: Tag | None) -> bool:
    """Whether the run goes on in the directory that its tag is in."""
    return resumed is not None and resumed.prefix.parent.resolve() == directory.resolve()


def _is_of_another_run(prefix: Path, run: str) -> bool:
    try:
        record = reading.read_checkpoint(prefix).record
    except UserError:  # damaged, so it cannot be used either
        return False
    return record is None or record.run != run
