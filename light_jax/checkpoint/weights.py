"""The weights of a run <-> one safetensors file in PyTorch's layout, float32."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from safetensors import SafetensorError
from safetensors.numpy import save_file

from conversion.mapping import TIED_KEY, Entry, table
from conversion.weights import check_keys, check_tied, to_torch_layout
from light_jax.parallel.sharding import copies
from light_llm.checkpoint.tensors import Reader, Tensor, read_tensors, spelling
from light_llm.errors import UserError
from light_llm.files import disk
from light_llm.models.transformer.config import TransformerConfig


def save_weights(path: Path, weights: nnx.State, cfg: TransformerConfig) -> None:
    """Write float32 weights; every process calls it, process 0 writes."""
    arrays = gather_weights(weights, cfg)
    if jax.process_index() == 0:
        write_weights(path, arrays, cfg)


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


def write_weights(path: Path, arrays: dict[str, np.ndarray], cfg: TransformerConfig) -> None:
    """Write what `gather_weights` gave; `arrays` is in PyTorch's layout afterwards.

    Two arrays are transposed at a time, and no other copy is made. Equal weights make equal files.
    """

    def transpose(entry: Entry) -> None:
        arrays[entry.key] = to_torch_layout(arrays[entry.key], entry)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(transpose, table(cfg)))
    if cfg.tie_embeddings:
        arrays[TIED_KEY] = arrays["tok_emb.weight"]
    with disk.create(path):
        mode = path.stat().st_mode  # the mode of any new file; safetensors makes its own 0600
    save_file(arrays, path, metadata={"format": "pt"})
    path.chmod(stat.S_IMODE(mode))


def _leaf(weights: Any, entry: Entry) -> jax.Array:
    for part in entry.path:
        weights = weights[part]
    return weights[...]


def _gather(array: jax.Array) -> np.ndarray:
    if array.is_fully_addressable:
        # of a copy: the step reuses the array's own memory, or it would keep the host's for itself
        return np.asarray(copies([array])[0])
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def check_weights(path: Path, cfg: TransformerConfig) -> None:
    """Compare the headers of a weights file, or of a Hugging Face folder, with the config.

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
        verified: the file is one that `save_weights` wrote, so a tied head is a copy; otherwise
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
        return np.ascontiguousarray(np.asarray(stored[index[::-1]], np.float32).T)

    return jax.make_array_from_callback(entry.jax_shape, sharding, part)
