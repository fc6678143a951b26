"""TPU: the splash attention kernels that ship with JAX (Pallas).

They compute only the blocks of scores that the mask shows, and keep them in the core's memory.

Letters: B batch, T query and key, N heads, K kv-heads, H head_dim of q and k, J head_dim of v.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from light_llm.models.transformer.mask import Span

# Pallas takes a tenth of a second to import, and only a TPU needs it.
if TYPE_CHECKING:
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

LANES = 128
# The largest that divides T is taken. 1024 compiles for a v5e too, up to head_dim 256, but in
# twice the time.
BLOCKS = (512, 256, 128)
SAVED = "attention"
"""The name of a kernel's result and log-sum-exp, for policies that keep them."""


def rounded(x: jax.Array) -> jax.Array:
    """To bfloat16 and back. XLA may take a pair of casts for nothing, but not this."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def scaled(q_BTNH: jax.Array, k_BTKH: jax.Array, scale: float) -> tuple[jax.Array, jax.Array]:
    """q and k in bfloat16 whose product is scale · q·k, for a kernel that has no scale.

    A scale that is a power of two is exact in q. Otherwise scale · q is the sum of two bfloat16
    numbers (16 bits), laid side by side, and k stands twice: this costs nothing where both fit
    into the lanes that the kernel takes anyway. Where they do not, q is rounded once more.
    """
    wide_BTNH = q_BTNH.astype(jnp.float32) * scale
    if math.frexp(scale)[0] == 0.5 or 2 * q_BTNH.shape[-1] > LANES:
        return wide_BTNH.astype(q_BTNH.dtype), k_BTKH
    high_BTNH = rounded(wide_BTNH)
    both = jnp.concatenate([high_BTNH, wide_BTNH - high_BTNH], axis=-1)
    return both.astype(q_BTNH.dtype), jnp.concatenate([k_BTKH, k_BTKH], axis=-1)


def attend(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKJ: jax.Array,
    document_BT: jax.Array | None = None,
    *,
    span: Span,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q·k) · v, [B, T, N, J] in v's dtype, on one device; `scaled` makes such q and k.

    T is padded to whole lanes. A causal query never sees the keys behind it; from a bidirectional
    one they are hidden by segments.

    Args:
        document_BT: a number, 0 or more, that only the tokens of one document share: they alone
            see each other.
        interpret: run the kernel on the CPU, slowly: to test it.
    """
    T, N = q_BTNH.shape[1:3]
    q_BNTH, k_BKTH, v_BKTJ = (_heads_first(x) for x in (q_BTNH, k_BTKH, v_BTKJ))
    padded = q_BNTH.shape[2]
    kernels, _ = _pallas()
    segments, over = None, None
    if document_BT is not None:
        pad = ((0, 0), (0, padded - T))
        ids_BT = jnp.pad(document_BT.astype(jnp.int32), pad, constant_values=-1)
        segments, over = kernels.SegmentIds(ids_BT, ids_BT), 0
    elif span.right is None and padded != T:
        is_padding_T = (jnp.arange(padded) >= T).astype(jnp.int32)
        segments = kernels.SegmentIds(is_padding_T, is_padding_T)
    kernel = _kernel(N, padded, span, interpret)
    out_BNTJ: jax.Array = jax.vmap(
        lambda q, k, v, ids: jnp.asarray(kernel(q, k, v, ids)), in_axes=(0, 0, 0, over)
    )(q_BNTH, k_BKTH, v_BKTJ, segments)
    return out_BNTJ[:, :, :T].transpose(0, 2, 1, 3)


def _heads_first(x_BTNH: jax.Array) -> jax.Array:
    pad = -x_BTNH.shape[1] % LANES
    return jnp.pad(x_BTNH.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, pad), (0, 0)))


def _pallas() -> tuple[Any, Any]:
    """The modules of kernels and of masks."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    return splash_attention_kernel, splash_attention_mask


def _kernel(
    num_heads: int, length: int, span: Span, interpret: bool
) -> kernels.SplashAttentionKernel:
    kernels, masks = _pallas()
    block = next(block for block in BLOCKS if length % block == 0)
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    mask = masks.MultiHeadMask([_mask(length, span)] * num_heads)
    return kernels.make_splash_mha_single_device(
        mask, block_sizes=sizes, residual_checkpoint_name=SAVED, interpret=interpret
    )


@functools.cache
def _mask(length: int, span: Span) -> masks.Mask:
    _, masks = _pallas()
    shape = (length, length)
    if span == Span(None, None):
        return masks.FullMask(shape)
    if span == Span(None, 0):
        return masks.CausalMask(shape)
    return masks.LocalMask(shape, window_size=span, offset=0)
