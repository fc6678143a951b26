"""Cross-entropy from final hidden states and the head's weight: [B, T, V] logits never exist whole.

Why chunks: logits would be the largest array of a step by far (for 8 × 1024 tokens and 50257 words
1.6 GB in float32), and their gradient is as large. A chunk of positions has only a part of them.

Why the gradient is computed in the forward pass: it needs the softmax of the logits. Autodiff would
keep the logits of every chunk until the backward pass, which is the whole array again, or compute
them a second time, a fourth large matmul beside three. But a loss's gradient is known except for
one factor, which the backward pass gets. So it is computed while the chunk's logits are there, and
the backward pass multiplies by that factor.

Over several devices each computes the logits of its own rows of the head, for the tokens of all
devices that share the head's columns (`parallel.tables`). Neither the head nor its gradient is ever
whole on one device.

The z-loss (Chowdhery et al. 2022, PaLM, section 5) is z_loss · log² Z of each token, Z being the
softmax's denominator. It needs nothing but that logarithm, which is there, and its gradient by the
logits is the softmax times 2 · z_loss · log Z: a factor on what the cross-entropy's has anyway.

A soft-cap (`capped`) stands between the matmul and all of this. Its derivative, 1 - (logit / cap)²,
is a function of what it returned. Where XLA keeps what it was given too, there is a second chunk.

Letters: B batch, C positions of a chunk, D model, V vocab, R rows of the head on one device.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from light_jax.models.layers import einsum_float32
from light_jax.models.transformer.model import capped
from light_jax.parallel.tables import (
    Tables,
    as_stored,
    gathered,
    head_of_device,
    largest,
    rows_of_device,
    summed,
)

MAX_CHUNK_LOGITS = 2**26  # elements on one device: 256 MiB in float32
MIN_CHUNKS = 8
FLOAT16_BOOST = 1024.0  # softmax - onehot of a rare token would underflow in float16


@dataclasses.dataclass(frozen=True)
class How:
    """What a loss is besides its arrays.

    Args:
        dtype: the matmuls' inputs; logits and later values are float32.
        tables: how the head and the batch lie on devices.
        row_multiple: a device's rows of the head are padded to a multiple of this, and masked out.
        z_loss: the weight of the z-loss; 0 is none.
        softcap: of the logits, or None.
    """

    dtype: DTypeLike
    tables: Tables
    row_multiple: int = 1
    z_loss: float = 0.0
    softcap: float | None = None


class Sums(NamedTuple):
    """Weighted sums over tokens, float32."""

    total: jax.Array  # to be differentiated; the other two have no gradient
    cross_entropy: jax.Array  # of -log p(target)
    z: jax.Array | None  # of z_loss · log² Z; None where z_loss is 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def loss_sums(
    hidden_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    how: How,
) -> Sums:
    """The losses of tokens, each times its weight, summed."""
    return _over_devices(hidden_BTD, head_VD, targets_BT, weights_BT, how, with_grads=False)[0]


def _forward(hidden_BTD, head_VD, targets_BT, weights_BT, how):  # type: ignore[no-untyped-def]
    args = (hidden_BTD, head_VD, targets_BT, weights_BT)
    return _over_devices(*args, how, with_grads=True)


def _backward(how, grads, g):  # type: ignore[no-untyped-def]
    grad_hidden_BTD, grad_head_VD = grads
    return grad_hidden_BTD * g.total, grad_head_VD * g.total.astype(grad_head_VD.dtype), None, None


loss_sums.defvjp(_forward, _backward)


def chunk_length(batch: int, length: int, vocab: int) -> int:
    """Positions per chunk, so that batch · chunk · vocab logits stay within the bound."""
    chunks = max(MIN_CHUNKS, math.ceil(batch * length * vocab / MAX_CHUNK_LOGITS))
    return math.ceil(length / min(chunks, length))


def _over_devices(
    hidden_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    how: How,
    *,
    with_grads: bool,
) -> tuple[Sums, tuple[jax.Array, ...]]:
    """(sums, the total's gradient by hidden in float32 and by head in the head's dtype, if any)."""
    rows, tables, everywhere = how.tables.batch_spec, how.tables, PartitionSpec()
    return jax.shard_map(
        functools.partial(_on_device, how, with_grads),
        mesh=tables.mesh,
        in_specs=(rows, tables.spec, rows, rows),
        out_specs=(everywhere, (rows, tables.spec) if with_grads else ()),
        check_vma=False,  # nothing in it is differentiated
    )(hidden_BTD, head_VD, targets_BT, weights_BT)


def _on_device(
    how: How,
    with_grads: bool,
    hidden_BTD: jax.Array,
    head: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
) -> tuple[Sums, tuple[jax.Array, ...]]:
    """`_over_devices`, of what one device holds."""
    dtype, tables = how.dtype, how.tables
    length, stored_rows = hidden_BTD.shape[1], head.shape[0]
    head_RD = head_of_device(tables, head.astype(dtype), how.row_multiple)
    row_R = rows_of_device(tables, head_RD.shape[0], stored_rows)
    is_row_R = row_R >= 0
    batch = hidden_BTD.shape[0] * tables.size(tables.columns)
    chunk = chunk_length(batch, length, head_RD.shape[0])
    boost = FLOAT16_BOOST if jnp.dtype(dtype) == jnp.float16 else 1.0
    is_padded = head_RD.shape[0] * tables.size(tables.columns) > stored_rows
    split = (tables.columns, tables.rows)  # over these, devices have different rows of the head

    def body(carry, inputs):  # type: ignore[no-untyped-def]
        loss, z, grad_head_DR = carry
        hidden_BCD, targets_BC, weights_BC = (gathered(x, tables.columns) for x in inputs)
        logits_BCR = capped(einsum_float32("bcd,rd->bcr", hidden_BCD, head_RD), how.softcap)
        if is_padded:
            logits_BCR = jnp.where(is_row_R, logits_BCR, -jnp.inf)
        max_BC = largest(jnp.max(logits_BCR, axis=-1), *split)
        sum_BC = summed(jnp.sum(jnp.exp(logits_BCR - max_BC[..., None]), axis=-1), *split)
        lse_BC = max_BC + jnp.log(sum_BC)
        is_target = row_R == targets_BC[..., None]
        target_BC = summed(jnp.sum(jnp.where(is_target, logits_BCR, 0.0), axis=-1), *split)
        loss += jnp.sum(weights_BC * (lse_BC - target_BC))
        if z is not None:
            z += jnp.sum(weights_BC * (how.z_loss * jnp.square(lse_BC)))
        if not with_grads:
            return (loss, z, None), None
        error_BCR = _error(how, logits_BCR, lse_BC, is_target, weights_BC * boost).astype(dtype)
        # [D, R]: as [R, D] a CPU would transpose a copy of the error, which is large
        grad_head_DR += einsum_float32("bcd,bcr->dr", hidden_BCD, error_BCR)
        grad_hidden_BCD = summed(einsum_float32("bcr,rd->bcd", error_BCR, head_RD), tables.rows)
        if tables.columns is not None:
            grad_hidden_BCD = jax.lax.psum_scatter(grad_hidden_BCD, tables.columns, tiled=True)
        return (loss, z, grad_head_DR), grad_hidden_BCD

    inputs = tuple(_chunked(x, chunk) for x in (hidden_BTD.astype(dtype), targets_BT, weights_BT))
    grad_zero = jnp.zeros(head_RD.shape[::-1], jnp.float32) if with_grads else None
    zero = jnp.float32(0)
    start = (zero, zero if how.z_loss else None, grad_zero)
    (loss, z, grad_head_DR), grad_hidden = jax.lax.scan(body, start, inputs)
    loss = summed(loss, *tables.summed_axes)
    sums = Sums(loss, loss, None)
    if z is not None:
        z = summed(z, *tables.summed_axes)
        sums = Sums(loss + z, loss, z)
    if grad_head_DR is None:
        return sums, ()
    grad_hidden_BTD = _whole(grad_hidden, length)
    grad_head_RD = summed(grad_head_DR, *tables.summed_axes).T / boost
    grad_head = as_stored(tables, grad_head_RD.astype(head.dtype), stored_rows)
    return sums, (grad_hidden_BTD / boost, grad_head)


def _error(
    how: How, logits_BCR: jax.Array, lse_BC: jax.Array, is_target: jax.Array, weights_BC: jax.Array
) -> jax.Array:
    """The gradient of the weighted losses' sum by what the head's matmul gave.

    Args:
        logits_BCR: capped; -inf where the head is padded.
        lse_BC: log Z.
    """
    probs_BCR = jnp.exp(logits_BCR - lse_BC[..., None])
    if how.z_loss:
        probs_BCR *= (1 + 2 * how.z_loss * lse_BC)[..., None]
    error_BCR = (probs_BCR - is_target) * weights_BC[..., None]
    if how.softcap is not None:
        slope_BCR = 1 - jnp.square(logits_BCR / how.softcap)
        error_BCR *= jnp.where(jnp.isneginf(logits_BCR), 0.0, slope_BCR)
    return error_BCR


def _chunked(x_BT: jax.Array, chunk: int) -> jax.Array:
    """[B, T, ...] -> [T/C, B, C, ...], padded with zeros (of weight 0)."""
    rows, length, *rest = x_BT.shape
    pad = [(0, 0), (0, -length % chunk)] + [(0, 0)] * len(rest)
    return jnp.moveaxis(jnp.pad(x_BT, pad).reshape(rows, -1, chunk, *rest), 1, 0)


def _whole(x: jax.Array, length: int) -> jax.Array:
    """The inverse of `_chunked`."""
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :length]
