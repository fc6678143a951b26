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
import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from light_jax.checkpoint.ownership import NOTE
from light_jax.parallel.sharding import copies, path_names
from light_jax.state import HostState, TrainState
from light_llm.errors import UserError, one_line
from light_llm.files import given

Result = TypeVar("Result")

_SUCCESS = "commit_success.txt"
_ARRAYS = "state"  # the folder, in the state's own, that holds a tensorstore database


def named_arrays(state: TrainState) -> dict[str, Any]:
    """The leaves of a TrainState that its weights file does not hold, by name."""
    rest = dataclasses.replace(state, params=None, master=None)
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


def import_orbax() -> None:
    """Import what the first save needs, on any thread."""
    from orbax.checkpoint import v1  # noqa: F401


def save_state(path: Path, state: TrainState, host: HostState) -> None:
    """Write the folder; every process calls it."""
    start_saving(path, state, host)()()


def start_saving(
    path: Path, state: TrainState, host: HostState
) -> Callable[[], Callable[[], None]]:
    """Copy the arrays to the host; every process calls it.

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


def _begin(path: Path, arrays: dict[str, jax.Array], host: HostState) -> Callable[[], None]:
    """Begin to write the folder. Returns a function that waits until it is written."""
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.array.saving.use_compression = False
    # otherwise a folder that cannot be made is an error only 20 minutes later, a timeout
    context.asynchronous.create_directories_asynchronously = False
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
        with given.foreign(lambda reason: _unreadable(path, reason)):
            stored = _stored(path)
        size = sum(entry.stat().st_size for entry in _entries(path / _ARRAYS) if entry.is_file())
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


def _shapes(arrays: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in arrays.items()}


def _entries(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        yield from (Path(root) / name for name in (*folders, *files))


def _check_entries(path: Path) -> None:
    """Check that the folder holds only files and folders, and no link that leads out of it.

    Raises:
        UserError: it holds something else; orbax would wait at a FIFO, or read files elsewhere.
    """
    for entry in _entries(path):
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
    _check_entries(path)
    with given.foreign(lambda reason: _unreadable(path, reason)):
        note = given.read_json(path / NOTE)["custom_metadata"]
        host = HostState(**note)
        shards = [(shard["name"], shard["rows"], shard["tokens"]) for shard in host.fingerprint]
        if not all(
            isinstance(name, str) and all(type(n) is int for n in numbers)
            for name, *numbers in shards
        ):
            raise ValueError("its fingerprint does not list shards")
        if not isinstance(host.run, str) or not isinstance(host.wandb_run_id, str | None):
            raise ValueError("its run or wandb_run_id is not a text")
        if not isinstance(host.best_val_loss, int | float | None):
            raise ValueError(f"best_val_loss={host.best_val_loss!r} is not a number")
    return host


def load_arrays(path: Path, abstract: TrainState) -> dict[str, jax.Array]:
    """The arrays by name, laid out by the shardings of `abstract`'s leaves.

    Raises:
        UserError: names, shapes or dtypes are not those of `abstract`, or they cannot be read.
    """
    from orbax.checkpoint import v1 as ocp

    _check_entries(path)
    wanted, real = named_arrays(abstract), _real(path)
    stored = _from_orbax(path, lambda: _shapes(ocp.metadata(real).metadata))
    expected = _shapes(wanted)
    if stored != expected:  # orbax would cast a dtype and cut a shape in silence
        names = sorted(stored.keys() ^ expected.keys()) or [
            name for name in expected if stored[name] != expected[name]
        ]
        raise UserError(f"{path}: its arrays are not those of this config: {', '.join(names[:8])}")
    return _from_orbax(path, lambda: ocp.load(real, wanted))


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
    raise UserError(_unreadable(path, reason))


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
    rest = dataclasses.replace(abstract, params=None, master=None)
    return jax.tree_util.tree_map_with_path(
        lambda path, _: arrays["/".join(path_names(path))], rest
    )


def _unreadable(path: Path, reason: str) -> str:
    return f"{path}: orbax cannot read it ({reason[:300]}); use another tag"
