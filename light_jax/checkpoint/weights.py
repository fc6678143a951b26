"""The weights of a run <-> safetensors in PyTorch's layout, float32: one file, or parts."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from safetensors import SafetensorError

from conversion.mapping import TIED_KEY, Entry, table
from conversion.weights import check_keys, check_tied, to_torch_layout
from light_jax.parallel.hosts import together
from light_jax.parallel.sharding import copies
from light_llm.checkpoint import parts
from light_llm.checkpoint.tensors import Reader, Tensor, read_tensors, spelling
from light_llm.errors import UserError
from light_llm.files import disk, tensor_file
from light_llm.files.tensor_file import Spec
from light_llm.models.transformer.config import TransformerConfig

AHEAD = 2
"""Tensors that are transposed while another one is written."""

_transposed = jax.jit(lambda array: array.T)


class Plan:
    """Which files the weights of a tag become, and in which order their tensors are written.

    Args:
        most: bytes of tensors in a file; None is one file for all.
    """

    def __init__(self, tag: str, cfg: TransformerConfig, most: int | None) -> None:
        self.index = f"{tag}{parts.INDEX}"
        self.entries = {entry.key: entry for entry in table(cfg)}
        if cfg.tie_embeddings:
            self.entries[TIED_KEY] = self.entries["tok_emb.weight"]
        self.specs = {key: Spec("F32", entry.shape) for key, entry in self.entries.items()}
        sizes = {key: spec.nbytes for key, spec in self.specs.items()}
        self.total = sum(sizes.values())
        files = parts.plan(tag, sizes, self.total if most is None else most)
        self.files = {name: self._of(keys) for name, keys in files.items()}

    def _of(self, keys: Iterable[str]) -> dict[str, Spec]:
        specs = {key: self.specs[key] for key in keys}
        return {key: specs[key] for key in tensor_file.in_order(specs)}

    @property
    def keys(self) -> Iterator[str]:
        """Of all files, as they are written."""
        return (key for specs in self.files.values() for key in specs)

    def write(self, folder: Path, tensors: Iterator[np.ndarray]) -> list[Path]:
        """Write the files, and an index where there are several. Returns those with tensors.

        Args:
            tensors: in PyTorch's layout, in the order of `keys`.
        """

        def data(key: str) -> Iterator[memoryview]:
            yield np.ascontiguousarray(next(tensors), "<f4").data.cast("B")

        for name, specs in self.files.items():
            tensor_file.write(folder / name, specs, {"format": "pt"}, data)
        if len(self.files) > 1:
            places = {key: name for name, specs in self.files.items() for key in specs}
            ordered = {key: places[key] for key in self.entries}
            with disk.create(folder / self.index) as file:
                file.write(parts.index_text(ordered, self.total).encode())
        return [folder / name for name in self.files]


def save_weights(
    folder: Path, tag: str, weights: nnx.State, cfg: TransformerConfig, most: int | None = None
) -> list[Path]:
    """Write float32 weights from where they are, with one tensor at a time on the host.

    Every process calls it, on the main thread; process 0 writes. Equal weights make equal files.

    Args:
        most: see `Plan`.

    Returns:
        The files with tensors; of other processes none.
    """
    plan = Plan(tag, cfg, most)
    entries = (plan.entries[key] for key in plan.keys)
    tensors = (_on_host(_leaf(weights, entry), entry) for entry in entries)

    def work() -> list[Path]:
        try:
            return plan.write(folder, tensors) if jax.process_index() == 0 else []
        finally:
            deque(tensors, maxlen=0)  # the others gather, so that no process waits for this one

    return together(work)


def gather_weights(weights: nnx.State, cfg: TransformerConfig) -> dict[str, np.ndarray]:
    """The weights on the host, by key, in JAX's layout; one is gathered at a time.

    Every process calls it, on the main thread; process 0 gets them, the others get nothing.
    """
    arrays: dict[str, np.ndarray] = {}
    for entry in table(cfg):
        whole = _gather(_leaf(weights, entry))
        if jax.process_index() == 0:
            arrays[entry.key] = whole
    return arrays


def write_weights(
    folder: Path,
    tag: str,
    arrays: dict[str, np.ndarray],
    cfg: TransformerConfig,
    most: int | None = None,
) -> list[Path]:
    """Write what `gather_weights` gave, and let go of each array as it is written.

    The files are those of `save_weights`. A few tensors at a time are there twice, transposed.
    """
    plan = Plan(tag, cfg, most)
    shared = {"tok_emb.weight"} if cfg.tie_embeddings else set()  # the head is written of it too

    def take(key: str) -> np.ndarray:
        entry = plan.entries[key]
        array = arrays[entry.key] if entry.key in shared else arrays.pop(entry.key)
        return to_torch_layout(array, entry)

    written = plan.write(folder, _ahead(take, plan.keys))
    arrays.clear()
    return written


def _ahead(work: Callable[[str], np.ndarray], keys: Iterable[str]) -> Iterator[np.ndarray]:
    """What `work` gives for each key, in order, made on other threads a little before its turn."""
    made: deque[Future[np.ndarray]] = deque()
    with ThreadPoolExecutor(AHEAD) as pool:
        for key in keys:
            made.append(pool.submit(work, key))
            if len(made) > AHEAD:
                yield made.popleft().result()
        while made:
            yield made.popleft().result()


def _on_host(array: jax.Array, entry: Entry) -> np.ndarray:
    """One tensor in PyTorch's layout; its devices transpose it, so the host has it once."""
    return _gather(array) if not entry.transposed else _whole_array(_transposed(array))


def _leaf(weights: Any, entry: Entry) -> jax.Array:
    for part in entry.path:
        weights = weights[part]
    return weights[...]


def _gather(array: jax.Array) -> np.ndarray:
    # of a copy: the step reuses the array's own memory, or it would keep the host's for itself
    return _whole_array(copies([array])[0] if array.is_fully_addressable else array)


def _whole_array(array: jax.Array) -> np.ndarray:
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def check_weights(path: Path, cfg: TransformerConfig) -> None:
    """Compare the headers of the weights, or of a Hugging Face folder, with the config.

    No tensor is read, no model built.

    Raises:
        UserError: not a safetensors file, or weights that do not fit the config.
    """
    _fitting(path, cfg)


def _fitting(path: Path, cfg: TransformerConfig) -> dict[str, Tensor]:
    tensors = read_tensors(path)
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    check_keys(shapes, cfg, path, spelling(path))
    return tensors


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file: {error}") from None


def load_weights(
    path: Path, cfg: TransformerConfig, shardings: nnx.State, *, verified: bool = False
) -> nnx.State:
    """Float32 parameters, laid out by `shardings`; each process reads only the slices it holds.

    Args:
        verified: the files are ones that `save_weights` wrote, so a tied head is a copy; otherwise
            every process reads both to compare them.

    Raises:
        UserError: not a safetensors file, or weights that do not fit the config.
    """
    tensors = _fitting(path, cfg)
    with _whole(path), Reader(tensors, "numpy") as stored:
        if cfg.tie_embeddings and not verified and TIED_KEY in tensors:
            check_tied(stored.whole("tok_emb.weight"), stored.whole(TIED_KEY), path)
        arrays = {
            entry.path: _read(stored.part(entry.key), entry, _leaf_sharding(shardings, entry))
            for entry in table(cfg)
        }
    return nnx.from_flat_state((path, nnx.Param(array)) for path, array in arrays.items())


def _leaf_sharding(shardings: Any, entry: Entry) -> jax.sharding.Sharding:
    for part in entry.path:
        shardings = shardings[part]
    leaf = shardings
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def _read(stored: Any, entry: Entry, sharding: jax.sharding.Sharding) -> jax.Array:
    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or ()
        if not entry.transposed:
            return np.asarray(stored[index], np.float32)
        return np.asarray(stored[index[::-1]], np.float32).T  # jax transposes it as it copies

    return jax.make_array_from_callback(entry.jax_shape, sharding, part)
