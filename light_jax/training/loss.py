"""Cross-entropy from final hidden states and the head's weight: [B, T, V] logits never exist whole.

Why chunks: logits would be the largest array of a step by far (for 8 × 1024 tokens and 50257 words
1.6 GB in float32), and their gradient is as large. A chunk of positions has only a part of them.

Why the gradient is computed in the forward pass: it needs the softmax of the logits. Autodiff would
keep the logits of every chunk until the backward pass, which is the whole array again, or compute
them a second time, a fourth large matmul beside three. But a loss's gradient is known except for
one factor, which the backward pass gets. So it is computed while the chunk's logits are there, and
the backward pass multiplies by that factor.

Letters: X shards of the batch, B batch (of one shard), C positions of a chunk, D model, V vocab.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from light_jax.models.layers import matmul_precision

MAX_CHUNK_LOGITS = 2**26  # elements on one device: 256 MiB in float32
MIN_CHUNKS = 4
FLOAT16_BOOST = 1024.0  # softmax - onehot of a rare token would underflow in float16


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def cross_entropy_sum(
    hidden_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    dtype: DTypeLike,
    shards: int = 1,
    row_multiple: int = 1,
) -> jax.Array:
    """Sum over tokens of weight · -log p(target), float32.

    Args:
        dtype: the matmuls' inputs; logits and later values are float32.
        shards: the number of devices that the batch is laid over. Each sums its own gradient of
            the head, and they are added up once, at the end, not by an all-reduce per chunk.
        row_multiple: the head's rows are padded to a multiple of this, and masked out.
    """
    return _scan(hidden_BTD, head_VD, targets_BT, weights_BT, dtype, shards, row_multiple, False)[0]


def _forward(hidden_BTD, head_VD, targets_BT, weights_BT, dtype, shards, row_multiple):  # type: ignore[no-untyped-def]
    args = (hidden_BTD, head_VD, targets_BT, weights_BT, dtype, shards, row_multiple)
    loss, grad_hidden_BTD, grad_head_VD = _scan(*args, True)
    assert grad_head_VD is not None
    return loss, (grad_hidden_BTD, grad_head_VD.astype(head_VD.dtype))


def _backward(dtype, shards, row_multiple, grads, g):  # type: ignore[no-untyped-def]
    grad_hidden_BTD, grad_head_VD = grads
    return grad_hidden_BTD * g, grad_head_VD * g.astype(grad_head_VD.dtype), None, None


cross_entropy_sum.defvjp(_forward, _backward)


def chunk_length(batch: int, length: int, vocab: int) -> int:
    """Positions per chunk, so that batch · chunk · vocab logits stay within the bound."""
    chunks = max(MIN_CHUNKS, math.ceil(batch * length * vocab / MAX_CHUNK_LOGITS))
    return math.ceil(length / min(chunks, length))


def _scan(
    hidden_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    dtype: DTypeLike,
    shards: int,
    row_multiple: int,
    with_grads: bool,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """(loss, its gradient by hidden, by head), the gradients float32 or None."""
    batch, length, _ = hidden_BTD.shape
    vocab = head_VD.shape[0]
    head_VD = jnp.pad(head_VD.astype(dtype), ((0, -vocab % row_multiple), (0, 0)))
    chunk = chunk_length(batch // shards, length, vocab)
    boost = FLOAT16_BOOST if jnp.dtype(dtype) == jnp.float16 else 1.0
    dot = functools.partial(
        jnp.einsum, precision=matmul_precision(dtype), preferred_element_type=jnp.float32
    )

    def body(carry, inputs):  # type: ignore[no-untyped-def]
        loss, grad_head_XVD = carry
        hidden_XBCD, targets_XBC, weights_XBC = inputs
        logits_XBCV = _without_padding(dot("xbcd,vd->xbcv", hidden_XBCD, head_VD), vocab)
        lse_XBC = jax.nn.logsumexp(logits_XBCV, axis=-1)
        is_target = jnp.arange(head_VD.shape[0]) == targets_XBC[..., None]
        target_XBC = jnp.sum(jnp.where(is_target, logits_XBCV, 0.0), axis=-1)
        loss += jnp.sum(weights_XBC * (lse_XBC - target_XBC))
        if not with_grads:
            return (loss, None), None
        probs_XBCV = jnp.exp(logits_XBCV - lse_XBC[..., None])
        error_XBCV = (probs_XBCV - is_target) * (weights_XBC * boost)[..., None]
        error_XBCV = error_XBCV.astype(dtype)
        grad_hidden_XBCD = dot("xbcv,vd->xbcd", error_XBCV, head_VD)
        grad_head_XVD += dot("xbcv,xbcd->xvd", error_XBCV, hidden_XBCD)
        return (loss, grad_head_XVD), grad_hidden_XBCD

    inputs = tuple(
        _chunked(x, shards, chunk) for x in (hidden_BTD.astype(dtype), targets_BT, weights_BT)
    )
    grad_zero_XVD = jnp.zeros((shards, *head_VD.shape), jnp.float32) if with_grads else None
    (loss, grad_head_XVD), grad_hidden = jax.lax.scan(body, (jnp.float32(0), grad_zero_XVD), inputs)
    if grad_head_XVD is None:
        return loss, None, None
    grad_hidden_BTD = jnp.moveaxis(grad_hidden, 0, 2).reshape(batch, -1, hidden_BTD.shape[-1])
    grad_head_VD = jnp.sum(grad_head_XVD, axis=0)[:vocab]
    return loss, grad_hidden_BTD[:, :length] / boost, grad_head_VD / boost


def _chunked(x_BT: jax.Array, shards: int, chunk: int) -> jax.Array:
    """[X·B, T, ...] -> [T/C, X, B, C, ...], padded with zeros (of weight 0)."""
    rows, length, *rest = x_BT.shape
    pad = [(0, 0), (0, -length % chunk)] + [(0, 0)] * len(rest)
    x = jnp.pad(x_BT, pad).reshape(shards, rows // shards, -1, chunk, *rest)
    return jnp.moveaxis(x, 2, 0)


def _without_padding(logits_XBCV: jax.Array, vocab: int) -> jax.Array:
    """Logits of the head's padding are -inf: they add nothing to a softmax."""
    if logits_XBCV.shape[-1] == vocab:
        return logits_XBCV
    return jnp.where(jnp.arange(logits_XBCV.shape[-1]) < vocab, logits_XBCV, -jnp.inf)
