"""Weights between the two layouts: numpy and JAX arrays one way, a PyTorch state dict the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conversion.mapping import TIED_KEY, Entry, table
from light_llm.checkpoint.loading import check_layers, load_transformer
from light_llm.errors import UserError
from light_llm.models.transformer.config import TransformerConfig

if TYPE_CHECKING:
    import torch
    from flax import nnx

    from light_llm.checkpoint.reading import Checkpoint
    from light_llm.models.transformer import Transformer as TorchTransformer


def to_torch(params: Mapping[Any, Any], config: TransformerConfig) -> dict[str, np.ndarray]:
    """Parameters, or gradients, as a PyTorch state dict of contiguous numpy arrays.

    Args:
        params: the `nnx.State` that `nnx.split(model, nnx.Param, ...)` gives, or the same tree as
            nested dicts of arrays.

    Returns:
        Every key of the PyTorch model, in its order, `lm_head.weight` as a copy when tied.

    Raises:
        ValueError: a parameter is missing, unexpected or misshapen.
    """
    flat = dict(flatten(params))
    entries = table(config)
    problems = [f"missing {'.'.join(map(str, e.path))}" for e in entries if e.path not in flat]
    known = {entry.path for entry in entries}
    problems += [f"unexpected {'.'.join(map(str, path))}" for path in flat if path not in known]
    problems += [
        f"{'.'.join(map(str, e.path))} has shape {flat[e.path].shape}, not {e.jax_shape}"
        for e in entries
        if e.path in flat and flat[e.path].shape != e.jax_shape
    ]
    if problems:
        raise ValueError("the parameters do not fit the config: " + "; ".join(problems))
    # writable: torch.from_numpy would let torch write into the buffers of jax's own arrays
    state_dict = {
        entry.key: np.require(to_torch_layout(flat[entry.path], entry), requirements="W")
        for entry in entries
    }
    if config.tie_embeddings:
        state_dict[TIED_KEY] = state_dict["tok_emb.weight"].copy()
    return state_dict


def from_torch(
    state_dict: Mapping[str, Any],
    config: TransformerConfig,
    source: str | Path = "the state dict",
) -> nnx.State:
    """A PyTorch state dict (of tensors or numpy arrays) as the JAX model's `nnx.State`, float32.

    Args:
        source: its name in messages.

    Raises:
        UserError: keys that are missing, unexpected or misshapen, all of them in one message, or a
            tied `lm_head.weight` that differs from `tok_emb.weight`.
    """
    import jax.numpy as jnp
    from flax import nnx

    arrays = {key: as_numpy(value) for key, value in state_dict.items()}
    check_keys({key: value.shape for key, value in arrays.items()}, config, source)
    if config.tie_embeddings and TIED_KEY in arrays:
        check_tied(arrays["tok_emb.weight"], arrays[TIED_KEY], source)
    tree: dict[Any, Any] = {}
    for entry in table(config):
        *parents, leaf = entry.path
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        # a copy: jnp.asarray may share memory that its owner (a torch optimizer) writes to
        node[leaf] = nnx.Param(jnp.array(to_jax_layout(arrays[entry.key], entry), jnp.float32))
    return nnx.State(tree)


def to_torch_layout(array: Any, entry: Entry) -> np.ndarray:
    """One JAX parameter as PyTorch stores it, contiguous (safetensors writes strides wrongly)."""
    value = np.asarray(array)
    return np.ascontiguousarray(value.T if entry.transposed else value)


def to_jax_layout(array: np.ndarray, entry: Entry) -> np.ndarray:
    """One PyTorch parameter as the JAX model stores it."""
    return array.T if entry.transposed else array


def check_keys(
    shapes: Mapping[str, tuple[int, ...]],
    config: TransformerConfig,
    source: str | Path,
    spelt: Callable[[str], str] = str,
) -> None:
    """Raise one UserError that lists every missing, unexpected and misshapen key.

    Args:
        spelt: how the source calls one of our keys.
    """
    check_layers(len(shapes), config, source)
    wanted = {entry.key: entry.shape for entry in table(config)}
    allowed = wanted | ({TIED_KEY: wanted["tok_emb.weight"]} if config.tie_embeddings else {})
    problems = [
        f"missing {spelt(key)} {list(shape)}" for key, shape in wanted.items() if key not in shapes
    ]
    problems += [
        f"unexpected {spelt(key)} {list(shape)}"
        for key, shape in shapes.items()
        if key not in allowed
    ]
    problems += [
        f"{spelt(key)} has shape {list(shapes[key])}, the config says {list(shape)}"
        for key, shape in allowed.items()
        if key in shapes and tuple(shapes[key]) != shape
    ]
    if problems:
        raise UserError(
            f"{source}: the weights do not fit the model of the config; use the config that they "
            f"were trained with{_other_vocabulary(shapes, wanted)}:\n  " + "\n  ".join(problems)
        )


def _other_vocabulary(
    shapes: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> str:
    """What to add where the token tables have another number of rows and nothing else differs."""
    tables = {"tok_emb.weight", TIED_KEY} & shapes.keys()
    rows = {shapes[key][0] for key in tables if shapes[key]}
    rest = shapes.keys() - tables
    same = rest == wanted.keys() - {"tok_emb.weight", TIED_KEY} and all(
        tuple(shapes[key]) == wanted[key] for key in rest
    )
    if not same or len(rows) != 1 or rows == {wanted["tok_emb.weight"][0]}:
        return ""
    return f", where vocab_size is {rows.pop()}"


def check_tied(tok_emb: np.ndarray, lm_head: np.ndarray, source: str | Path) -> None:
    if np.array_equal(tok_emb, lm_head, equal_nan=True):
        return
    if Path(source).is_dir():
        raise UserError(
            f"{source}: lm_head.weight differs from model.embed_tokens.weight, but config.json has "
            "tie_word_embeddings=true; the model is not tied, so set that to false"
        )
    raise UserError(
        f"{source}: lm_head.weight differs from tok_emb.weight, but model.tie_embeddings is "
        "true; set it to false, or leave lm_head.weight out of the file"
    )


def load_torch(
    path_or_prefix: str | Path | Checkpoint, config: TransformerConfig | None = None
) -> TorchTransformer:
    """The light_llm (PyTorch) model with the weights of a .safetensors file or checkpoint prefix.

    Raises:
        UserError: no such file, damaged files, or weights that do not fit the config.
    """
    return load_transformer(path_or_prefix, config)


def flatten(tree: Any, path: tuple[Any, ...] = ()) -> Any:
    """(path, array) of each leaf of an `nnx.State` or of nested dicts."""
    if isinstance(tree, Mapping):
        for key in tree:
            yield from flatten(tree[key], (*path, key))
    else:
        yield path, tree.get_value() if hasattr(tree, "get_value") else tree


def as_numpy(value: np.ndarray | torch.Tensor) -> np.ndarray:
    """A tensor on any device as an array, bfloat16 as float32."""
    if isinstance(value, np.ndarray):
        return value
    value = value.detach().cpu()
    # numpy has no bfloat16; float32 holds each of its values exactly
    return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
