"""Which attention kernel trains a model, and why it is the portable one where it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from light_jax.config import TrainingConfig
from light_jax.models.kernels.flash import kernel_for
from light_jax.parallel.sharding import placement_of
from light_llm.models.transformer.mask import Span, span_of

BLOCKS = "blocks"
FASTEST: dict[str, Any] = {
    "dtype": jnp.bfloat16,
    "length": 128,
    "head_dim": 64,
    "span": Span(left=None, right=0),
    "alibi": False,
    "documents": False,
}
"""What every fused kernel takes."""


@dataclasses.dataclass(frozen=True)
class Attention:
    kernel: str  # splash, cudnn or blocks
    why: str | None = None  # a GPU or TPU computes blocks of queries
    remedy: str | None = None

    def __str__(self) -> str:
        if self.kernel != BLOCKS:
            return self.kernel
        return "blocks of queries" + ("" if self.why is None else f": {self.why}")


def attention_of(cfg: TrainingConfig, mesh: Mesh) -> Attention:
    """The kernel of a training step on this mesh."""
    placement, attention = placement_of(cfg.model, mesh), cfg.model.attention
    wide = 2 if attention.variant == "complex" else 1  # real and imaginary parts side by side
    asked: dict[str, Any] = {
        "dtype": jnp.dtype(cfg.dtype),
        "length": cfg.seq_len,
        "head_dim": wide * attention.head_dim,
        "span": span_of(attention),
        "alibi": cfg.model.positional.encoding == "alibi",
        "documents": attention.document_mask,
    }

    def computes(**changes: Any) -> bool:
        return kernel_for(placement, **{**FASTEST, **changes}) is not None

    kernel = kernel_for(placement, **asked)
    if kernel is not None and attention.dropout == 0:
        return Attention(kernel)
    if placement.platform == "cpu":
        return Attention(BLOCKS)
    if not computes():
        kind = mesh.devices.flat[0].device_kind
        return Attention(BLOCKS, f"{kind} has no fused kernel")
    if attention.dropout > 0:
        return Attention(BLOCKS, "attention.dropout is set", "set model.attention.dropout to 0")
    if not computes(documents=asked["documents"]):
        return Attention(
            BLOCKS,
            "attention.document_mask is set, which cuDNN has no kernel for",
            "set model.attention.document_mask to false",
        )
    if not computes(dtype=asked["dtype"]):
        return Attention(BLOCKS, f"dtype is {cfg.dtype}", "set dtype to bfloat16")
    if not computes(head_dim=asked["head_dim"]):
        return Attention(
            BLOCKS,
            f"queries and keys are {asked['head_dim']} wide",
            "use a smaller head_dim, a multiple of 8",
        )
    return Attention(
        BLOCKS, _limit_of_alibi(cfg, asked, computes), "use another positional.encoding"
    )


def _limit_of_alibi(
    cfg: TrainingConfig, asked: dict[str, Any], computes: Callable[..., bool]
) -> str:
    """What keeps a kernel from it. It is put into columns of q and k."""
    if not computes(alibi=True, span=asked["span"]):
        return f"alibi with mask_type {cfg.model.attention.mask_type}"
    if not computes(alibi=True, dtype=asked["dtype"]):
        return f"alibi with dtype {cfg.dtype}"
    if not computes(alibi=True, length=cfg.seq_len):
        return f"alibi over {cfg.seq_len} positions"
    return f"alibi with queries and keys that are {asked['head_dim']} wide"
