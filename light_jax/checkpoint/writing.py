"""What a save writes: weights and state, from a copy beside training or from the state itself while
it waits; and the config, which lists them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

from light_jax.checkpoint.ownership import MARK
from light_jax.checkpoint.state import save_state, start_saving
from light_jax.checkpoint.weights import gather_weights, save_weights, write_weights
from light_jax.config import TrainingConfig
from light_jax.parallel.hosts import is_main, together
from light_jax.state import HostState, Params, TrainState
from light_llm.checkpoint import reading
from light_llm.checkpoint.digests import digest
from light_llm.checkpoint.layout import CONFIG, STATE
from light_llm.checkpoint.parts import AVERAGE, is_index
from light_llm.checkpoint.reading import Member
from light_llm.files import disk

Digests = Mapping[Path, Member]
"""Of the files with weights; none but on process 0."""
Write = Callable[[], Digests]


def _weights(tag: str, state: TrainState) -> list[tuple[str, Params]]:
    """What is written in the form of weights, by the name of its files without their endings."""
    average = [] if state.average is None else [(f"{tag}{AVERAGE}", state.average)]
    return [(tag, state.weights), *average]


def copied(
    staging: Path,
    tag: str,
    state: TrainState,
    host: HostState,
    cfg: TrainingConfig,
    check: Callable[[], None],
) -> Write:
    """Copy the state to the host; every process calls it.

    Args:
        check: called by process 0 before it writes.

    Returns:
        What writes the weights and the state from the copy, on any thread.
    """
    gathered = {name: gather_weights(w, cfg.model) for name, w in _weights(tag, state)}
    begin = together(lambda: start_saving(staging / f"{tag}{STATE}", state, host))

    def write() -> Digests:
        writing = begin()
        digests: dict[Path, Member] = {}
        try:
            if is_main():
                check()
                for name, arrays in gathered.items():
                    paths = write_weights(staging, name, arrays, cfg.model, cfg.max_shard_bytes)
                    # while orbax is still writing
                    digests |= {path: digest(path) for path in paths}
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the reason
                writing()  # the folder must not be touched before orbax is done
            raise
        writing()
        return digests

    return write


def in_place(
    staging: Path,
    tag: str,
    state: TrainState,
    host: HostState,
    cfg: TrainingConfig,
    check: Callable[[], None],
) -> Write:
    """Write the weights and the state, with one tensor at a time beside them; every process calls
    it.

    Returns:
        What reads the weights again for their digests, on any thread.
    """
    together(lambda: check() if is_main() else None)
    paths = [
        path
        for name, weights in _weights(tag, state)
        for path in save_weights(staging, name, weights, cfg.model, cfg.max_shard_bytes)
    ]
    together(lambda: save_state(staging / f"{tag}{STATE}", state, host))
    return lambda: {path: digest(path) for path in paths}


def write_config(
    staging: Path,
    tag: str,
    cfg: TrainingConfig,
    record: reading.Record,
    digests: Digests = MappingProxyType({}),
) -> None:
    """Write the last member of a staged tag: the config, with the digests of the other files.

    An index has none: it names the files of one tag, and tags of the same step share this config.

    Args:
        record: without its `files`.
        digests: of the files whose digests are known already.
    """
    with ThreadPoolExecutor(1) as background:
        flushed = background.submit(disk.flush, staging)  # the disk is busy while this reads memory
        members = {
            str(path.relative_to(staging)).removeprefix(tag): digests.get(path) or digest(path)
            for path in sorted(staging.rglob("*"))
            if path.is_file() and path.name != MARK and not is_index(path)
        }
        flushed.result()
    record = record.model_copy(update={"files": members})
    config = cfg.model_dump(mode="json") | {"checkpoint": record.model_dump(mode="json")}
    with disk.create(staging / f"{tag}{CONFIG}") as file:
        file.write((json.dumps(reading.seal(config), indent=2) + "\n").encode())
