"""The two ways of a save: from a copy beside training, or from the state itself while it waits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

from light_jax.checkpoint.state import save_state, start_saving
from light_jax.checkpoint.weights import gather_weights, save_weights, write_weights
from light_jax.config import TrainingConfig
from light_jax.parallel.hosts import is_main, together
from light_jax.state import HostState, Params, TrainState
from light_llm.checkpoint.digests import digest
from light_llm.checkpoint.layout import STATE
from light_llm.checkpoint.parts import AVERAGE
from light_llm.checkpoint.reading import Member

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
