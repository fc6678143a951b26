"""NVIDIA: cuDNN's flash attention.

Letters: B batch, T query and key, N heads, K kv-heads, H head_dim.
"""

from __future__ import annotations

import jax

from light_llm.models.transformer.mask import Span


def attend(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, *, scale: float, span: Span
) -> jax.Array:
    """softmax(scale · q·k) · v, [B, T, N, H] in v's dtype, on one device."""
    return jax.nn.dot_product_attention(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        scale=scale,
        is_causal=span.right == 0,
        local_window_size=None if span.left is None else (span.left, 0),
        implementation="cudnn",
    )
