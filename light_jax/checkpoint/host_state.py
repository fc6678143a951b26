"""The folder of a state without orbax: its files, and the host's part of the state."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from light_jax.checkpoint.ownership import NOTE
from light_jax.data.index import SHARE, SOURCE
from light_jax.state import HostState
from light_llm.errors import UserError
from light_llm.files import given


def entries(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        yield from (Path(root) / name for name in (*folders, *files))


def check_entries(path: Path) -> None:
    """Check that the folder holds only files and folders, and no link that leads out of it.

    Raises:
        UserError: it holds something else; orbax would wait at a FIFO, or read files elsewhere.
    """
    for entry in entries(path):
        mode = os.lstat(entry).st_mode
        if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
            continue
        if stat.S_ISLNK(mode) and entry.exists() and given.leads_out(entry, path) is None:
            continue
        raise UserError(
            f"{entry}: is {given.kind_of(entry)}; a state has only regular files; use another tag"
        )


def is_mine(name: str) -> bool:
    """Whether this process checks that file of a tag: its own, or for process 0 a shared one.

    A run with fewer processes shares out the files of all that wrote.
    """
    _, _, writer = name.partition("ocdbt.process_")
    writer = writer.partition("/")[0]
    owner = int(writer) % jax.process_count() if writer.isdigit() else 0
    return owner == jax.process_index()


def load_host_state(path: Path) -> HostState:
    """The host's part, to be compared with the config before anything large is read.

    Raises:
        UserError: it cannot be read, or is not what a run writes.
    """
    check_entries(path)
    with given.foreign(lambda reason: unreadable(path, reason)):
        note = given.read_json(path / NOTE)["custom_metadata"]
        host = HostState(**note)
        shards = [(shard["name"], shard["rows"], shard["tokens"]) for shard in host.fingerprint]
        if not all(
            isinstance(name, str) and all(type(n) is int for n in numbers)
            for name, *numbers in shards
        ):
            raise ValueError("its fingerprint does not list shards")
        for key in (SOURCE, SHARE):
            if not all(isinstance(shard.get(key, ""), str) for shard in host.fingerprint):
                raise ValueError(f"its fingerprint has a {key} that is not a text")
        if not isinstance(host.run, str) or not isinstance(host.wandb_run_id, str | None):
            raise ValueError("its run or wandb_run_id is not a text")
        if not isinstance(host.trackio_run, str | None):
            raise ValueError("its trackio_run is not a text")
        if type(host.evaluations_since_best) is not int or not isinstance(
            host.best_val_step, int | None
        ):
            raise ValueError("its best_val_step or evaluations_since_best is not a number")
        _check_spikes(host.spikes)
        if not isinstance(host.best_val_loss, int | float | None):
            raise ValueError(f"best_val_loss={host.best_val_loss!r} is not a number")
    return host


def _check_spikes(state: Any) -> None:
    if state is None:
        return
    numbers = [x for name in ("loss", "grad_norm") for x in state[name]]
    if not all(isinstance(x, int | float) for x in numbers) or not isinstance(state["high"], list):
        raise ValueError("its spikes are not numbers")


def unreadable(path: Path, reason: str) -> str:
    return f"{path}: orbax cannot read it ({reason[:300]}); use another tag"
