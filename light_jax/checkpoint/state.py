"""What a resume needs besides the weights <-> an orbax folder.

Arrays are stored under their pytree paths as flat names, so the folder depends on neither optax's
nor Flax's container types. Only this file uses orbax's v1 API and gives it paths: orbax has its own
reading of `..` behind a link, of a backslash and of [ ] * ?. It is imported where it is used: that
takes a quarter of a second, and a run's first step does not need it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from light_jax.checkpoint.host_state import check_entries, entries, load_host_state, unreadable
from light_jax.parallel.sharding import copies, path_names
from light_jax.state import HostState, TrainState
from light_llm.errors import UserError, one_line
from light_llm.files import given

Result = TypeVar("Result")

_SUCCESS = "commit_success.txt"
_LEAST_LIMIT = 2**26  # bytes: with less, orbax would wait for each small array
_ARRAYS = "state"  # the folder, in the state's own, that holds a tensorstore database


def without_weights(state: TrainState) -> TrainState:
    """What the files with weights do not hold."""
    return dataclasses.replace(state, params=None, master=None, average=None)


def named_arrays(state: TrainState) -> dict[str, Any]:
    """The leaves of a TrainState that its files with weights do not hold, by name."""
    rest = without_weights(state)
    leaves = jax.tree_util.tree_leaves_with_path(rest)
    return {"/".join(path_names(path)): leaf for path, leaf in leaves}


def not_for_orbax(path: Path) -> str | None:
    """Why orbax cannot read what it writes under this path; None if it can."""
    real = os.path.realpath(path)
    if set("[]*?") & set(real):
        return f"{real} has one of [ ] * ? in it"
    return f"{real} has a backslash in it" if "\\" in real else None


def _real(path: Path) -> Path:
    """The path as the operating system understands it, for orbax.

    Raises:
        UserError: orbax would understand it differently.
    """
    if (reason := not_for_orbax(path)) is not None:
        raise UserError(f"{path}: {reason}, so no state can be read there; rename the folder")
    return Path(os.path.realpath(path))


_before: Callable[[sys.UnraisableHookArgs], Any] | None = None
"""What printed such errors before orbax was imported here."""


def import_orbax() -> None:
    """Import what the first save needs, on any thread."""
    from orbax.checkpoint import v1  # noqa: F401

    global _before
    if _before is None:
        _before, sys.unraisablehook = sys.unraisablehook, _unraisable


def _unraisable(error: sys.UnraisableHookArgs) -> None:
    """Print what a callback raised, but for those that come too late: where a save fails, orbax
    closes its event loop, and threads of its writers still report to it."""
    if str(error.exc_value) != "Event loop is closed":
        assert _before is not None
        _before(error)


def save_state(path: Path, state: TrainState, host: HostState) -> None:
    """Write the folder from the arrays as they are; every process calls it.

    On a CPU nothing is copied; else the host has as much at a time as the largest array takes.
    """
    _begin(path, named_arrays(state), host, one_at_a_time=True)()


def start_saving(
    path: Path, state: TrainState, host: HostState
) -> Callable[[], Callable[[], None]]:
    """Copy the arrays to the host, each device's part as it is; every process calls it.

    Returns:
        A function that begins to write the folder, on any thread, and returns one that waits until
        it is written. The processes wait for each other by JAX's coordination service, not by a
        collective. Process 0 then opens what was written.
    """
    arrays, on_cpu = named_arrays(state), jax.default_backend() == "cpu"
    if on_cpu:  # orbax would write from the buffers that the step reuses
        arrays = dict(zip(arrays, copies(list(arrays.values())), strict=True))
    begin = functools.partial(_begin, path, arrays, dataclasses.replace(host))
    if on_cpu and jax.process_count() == 1:
        return begin
    waits = begin()  # orbax copies from the devices here, and the processes meet
    return lambda: waits


def _begin(
    path: Path, arrays: dict[str, jax.Array], host: HostState, *, one_at_a_time: bool = False
) -> Callable[[], None]:
    """Begin to write the folder. Returns a function that waits until it is written."""
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.array.saving.use_compression = False
    # otherwise a folder that cannot be made is an error only 20 minutes later, a timeout
    context.asynchronous.create_directories_asynchronously = False
    if one_at_a_time:
        context.memory.transfer_concurrent_bytes = _largest(arrays)
    metadata = dataclasses.asdict(host)
    with context:
        written = ocp.save_async(_real(path), arrays, custom_metadata=metadata).result

    def wait() -> None:
        _as_a_fault_of_the_disk(written)
        if jax.process_index() == 0:
            # orbax's text has the path of the state on this machine
            if (path / _SUCCESS).exists():
                (path / _SUCCESS).write_text("Checkpoint commit was successful.\n")
            check_saved(path, _shapes(arrays), host)

    return wait


def _as_a_fault_of_the_disk(call: Callable[[], Any]) -> None:
    """Raise any error of orbax as an OSError: it has no type of its own for a disk that fails."""
    try:
        call()
    except (UserError, OSError):
        raise
    except Exception as error:
        raise OSError(f"orbax: {type(error).__name__}: {error}") from error


def check_saved(path: Path, expected: dict[str, tuple[Any, ...]], host: HostState) -> None:
    """Open the folder as a resume would, and check that it has arrays of these shapes and dtypes.

    It runs on any thread: no collective, and no array is read.

    Raises:
        OSError: a run could not be resumed from it.
    """
    try:
        found = load_host_state(path)
        with given.foreign(lambda reason: unreadable(path, reason)):
            stored = _stored(path)
        size = sum(entry.stat().st_size for entry in entries(path / _ARRAYS) if entry.is_file())
    except (UserError, OSError) as error:
        raise OSError(f"the state that was written cannot be resumed from: {error}") from None
    needed = sum(
        int(np.prod(shape)) * jnp.dtype(dtype).itemsize for shape, dtype in expected.values()
    )
    if found.run != host.run or stored != expected or size < needed:
        raise OSError(
            f"the state that was written cannot be resumed from: {path / _ARRAYS} holds "
            f"{len(stored)} of {len(expected)} arrays and {size:,} of {needed:,} bytes"
        )


def _stored(path: Path) -> dict[str, tuple[Any, ...]]:
    """(shape, dtype) of the arrays in the folder's own database, by name."""
    import tensorstore

    database = tensorstore.KvStore.open(
        {"driver": "ocdbt", "base": {"driver": "file", "path": f"{_real(path) / _ARRAYS}/"}}
    ).result()
    ending = b"/zarr.json"
    keys = [key for key in database.list().result() if key.endswith(ending)]
    texts = [database.read(key) for key in keys]
    arrays = {}
    for key, text in zip(keys, texts, strict=True):
        about = given.parse_json(text.result().value, path)
        arrays[key.removesuffix(ending).decode()] = (tuple(about["shape"]), about["data_type"])
    return arrays


def _largest(arrays: dict[str, Any]) -> int:
    """A limit in bytes for orbax, by which each array can pass alone: it has to be below it."""
    sizes = (math.prod(a.shape) * jnp.dtype(a.dtype).itemsize for a in arrays.values())
    return 1 + max(_LEAST_LIMIT, *sizes)


def _shapes(arrays: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in arrays.items()}


def load_arrays(path: Path, abstract: TrainState) -> dict[str, jax.Array]:
    """The arrays by name, laid out by the shardings of `abstract`'s leaves.

    Raises:
        UserError: names, shapes or dtypes are not those of `abstract`, or they cannot be read.
    """
    from orbax.checkpoint import v1 as ocp

    check_entries(path)
    wanted, real = named_arrays(abstract), _real(path)
    stored = _from_orbax(path, lambda: _shapes(ocp.metadata(real).metadata))
    expected = _shapes(wanted)
    if stored != expected:  # orbax would cast a dtype and cut a shape in silence
        names = sorted(stored.keys() ^ expected.keys()) or [
            name for name in expected if stored[name] != expected[name]
        ]
        raise UserError(f"{path}: its arrays are not those of this config: {', '.join(names[:8])}")
    arrays: dict[str, jax.Array] = {}
    for group in _largest_first(wanted):
        context = ocp.Context()
        context.memory.read_concurrent_bytes = _largest(group)
        context.pytree.loading.partial_load = len(group) < len(wanted)
        with context:
            arrays |= _from_orbax(path, functools.partial(ocp.load, real, group))
    return arrays


def _largest_first(arrays: dict[str, Any]) -> list[dict[str, Any]]:
    """The arrays in two groups. Orbax has an array that it reads twice or thrice for a moment, so
    the largest come while there is room for the rest."""
    small = {name for name, array in arrays.items() if _largest({name: array}) <= 1 + _LEAST_LIMIT}
    groups = [{n: a for n, a in arrays.items() if (n in small) == last} for last in (False, True)]
    return [group for group in groups if group]


def _from_orbax(path: Path, read: Callable[[], Result]) -> Result:
    """What `read` returns.

    Raises:
        UserError: orbax cannot read the folder `path`; it is the only thing that is printed.
    """
    with _quiet():
        try:
            return read()
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise  # the device's fault, not the file's
        except Exception as error:
            reason = one_line(error)
        gc.collect()  # what orbax left would print its traceback when it is collected
    raise UserError(unreadable(path, reason))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence orbax: each read that it gives up after an error would print a traceback."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    loggers = [logging.getLogger(name) for name in ("asyncio", "absl")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def with_arrays(abstract: TrainState, arrays: dict[str, jax.Array]) -> TrainState:
    """`abstract` without its weights, each leaf replaced by the array of its name."""
    rest = without_weights(abstract)
    return jax.tree_util.tree_map_with_path(
        lambda path, _: arrays["/".join(path_names(path))], rest
    )
