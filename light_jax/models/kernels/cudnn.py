"""NVIDIA: cuDNN's flash attention.

Letters: B batch, T query and key, N heads, K kv-heads, H head_dim.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from light_llm.models.transformer.mask import Span

FORWARD = "dot_product_attention_fwd_wrapper"
"""The primitive in which jax computes what the backward pass needs, by its name in jax."""
MULTIPLE = 8  # of head_dims that it takes


def width(head_dim: int) -> int:
    """The next head_dim that it takes, if that is not above `widest`."""
    return -(-head_dim // MULTIPLE) * MULTIPLE


def widest(major: int) -> int:
    """The largest head_dim that it takes on GPUs of that compute capability; 0 if none."""
    return 256 if major == 9 else 128 if major >= 8 else 0  # above 128 Hopper alone has gradients


def attend(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, *, scale: float, span: Span
) -> jax.Array:
    """softmax(scale · q·k) · v, [B, T, N, H] in v's dtype, on one device. H is as `width` says.

    An odd T is padded for causal masks, whose queries never see what lies behind them.
    """
    T = q_BTNH.shape[1]
    pad = ((0, 0), (0, T % 2), (0, 0), (0, 0))
    q_BTNH, k_BTKH, v_BTKH = (jnp.pad(x, pad) for x in (q_BTNH, k_BTKH, v_BTKH))
    out_BTNH = jax.nn.dot_product_attention(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        scale=scale,
        is_causal=span.right == 0,
        local_window_size=None if span.left is None else (span.left, 0),
        implementation="cudnn",
    )
    return out_BTNH[:, :T]
