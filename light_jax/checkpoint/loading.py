"""Weights of a checkpoint -> the JAX model."""

from __future__ import annotations

from pathlib import Path

from flax import nnx

from conversion.weights import check_keys, from_torch
from light_jax.models.transformer.model import Transformer
from light_llm.checkpoint.loading import read_weights
from light_llm.checkpoint.reading import Checkpoint
from light_llm.checkpoint.tensors import Tensor, spelling
from light_llm.models.transformer.config import TransformerConfig


def load_jax(
    path_or_prefix: str | Path | Checkpoint, config: TransformerConfig | None = None
) -> Transformer:
    """The light_jax model with the weights of a .safetensors file, a checkpoint prefix or the
    folder of a Hugging Face model.

    Called on tokens [B, T] it gives logits [B, T, V]. `config` is read from the checkpoint's
    snapshot when left out.

    Raises:
        UserError: no such file, damaged files, or weights that do not fit the config.
    """

    def check(tensors: dict[str, Tensor], cfg: TransformerConfig, path: Path) -> None:
        shapes = {key: tensor.shape for key, tensor in tensors.items()}
        check_keys(shapes, cfg, path, spelling(path))

    tensors, cfg, path = read_weights(path_or_prefix, config, "numpy", check)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, from_torch(tensors, cfg, path))
