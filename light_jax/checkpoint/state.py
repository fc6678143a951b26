"""What a resume needs besides the weights <-> an orbax folder.

Arrays are stored under their pytree paths as flat names, so the folder depends on neither optax's
nor Flax's container types. orbax's v1 API is used in this file alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from light_jax.parallel.sharding import path_names
from light_jax.state import HostState, TrainState
from light_llm.errors import UserError


def named_arrays(state: TrainState) -> dict[str, Any]:
    """The leaves of a TrainState that its weights file does not hold, by name."""
    rest = dataclasses.replace(state, params=None, master=None)
    leaves = jax.tree_util.tree_leaves_with_path(rest)
    return {"/".join(path_names(path)): leaf for path, leaf in leaves}


def save_state(path: Path, state: TrainState, host: HostState) -> None:
    """Write the folder; every process calls it."""
    start_saving(path, state, host)()


def start_saving(path: Path, state: TrainState, host: HostState) -> Callable[[], None]:
    """Copy the arrays to the host and begin to write the folder; every process calls it.

    Returns:
        What waits until it is written, on any thread. The processes wait for each other there by
        JAX's coordination service, not by a collective.
    """
    context = ocp.Context()
    context.array.saving.use_compression = False
    # else a folder that cannot be made is an error of its threads' patience, 20 minutes later
    context.asynchronous.create_directories_asynchronously = False
    arrays = named_arrays(state)
    if jax.default_backend() == "cpu":  # orbax would write from the buffers that the step reuses
        arrays = jax.tree.map(jnp.copy, arrays)
    with context:
        metadata = dataclasses.asdict(host)
        return ocp.save_async(path.absolute(), arrays, custom_metadata=metadata).result


def is_mine(name: str) -> bool:
    """Whether this process wrote that file of a tag; process 0 answers for what all share.

    A process of a smaller run answers for several of those that wrote.
    """
    _, _, writer = name.partition("ocdbt.process_")
    writer = writer.partition("/")[0]
    owner = int(writer) % jax.process_count() if writer.isdigit() else 0
    return owner == jax.process_index()


def load_host_state(path: Path) -> HostState:
    """The host's part alone, to be compared with the config before anything large is read."""
    try:
        return HostState(**ocp.metadata(path.absolute()).custom_metadata)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from None


def load_arrays(path: Path, abstract: TrainState) -> dict[str, jax.Array]:
    """The arrays by name, laid out by the shardings of `abstract`'s leaves.

    Raises:
        UserError: names, shapes or dtypes are not those of `abstract`.
    """
    wanted = named_arrays(abstract)
    try:
        metadata = ocp.metadata(path.absolute()).metadata
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from None
    stored = {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in metadata.items()}
    expected = {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in wanted.items()}
    if stored != expected:  # orbax would cast a dtype and cut a shape in silence
        names = sorted(stored.keys() ^ expected.keys()) or [
            name for name in expected if stored[name] != expected[name]
        ]
        raise UserError(f"{path}: its arrays are not those of this config: {', '.join(names[:8])}")
    return ocp.load(path.absolute(), wanted)


def with_arrays(abstract: TrainState, arrays: dict[str, jax.Array]) -> TrainState:
    """`abstract` without its weights, each leaf replaced by the array of its name."""
    rest = dataclasses.replace(abstract, params=None, master=None)
    return jax.tree_util.tree_map_with_path(
        lambda path, _: arrays["/".join(path_names(path))], rest
    )


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:300]
    return UserError(f"{path}: orbax cannot read it ({reason}); use another tag")
