"""Attention layers.

Letters: B batch, T query, S key, N heads, K kv-heads, G = N/K, H head_dim, D model.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from light_jax.models.attend import Span, attend
from light_jax.models.layers import Linear
from light_jax.models.transformer.positional import Geometry, apply_complex_rope, apply_rope
from light_llm.models.transformer.config import AttentionConfig, TransformerConfig

MASK = {
    "causal": lambda cfg: Span(left=None, right=0),
    "bidirectional": lambda cfg: Span(left=None, right=None),
    "sliding_window": lambda cfg: Span(left=cfg.window_size, right=0),
}


def span_of(cfg: AttentionConfig) -> Span:
    """The keys that a query sees under cfg.mask_type."""
    return MASK[cfg.mask_type](cfg)


class Attention(nnx.Module):
    """Grouped-query attention (Ainslie et al. 2023); mha and mqa are its two ends.

    Query head n reads kv head n // G.
    """

    def __init__(self, cfg: TransformerConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        att = cfg.attention
        linear = functools.partial(Linear, bias=att.bias, dtype=dtype, rngs=rngs)
        q_dim, kv_dim = att.num_heads * att.head_dim, att.num_kv_heads * att.head_dim
        self.q_proj = linear(cfg.d_model, q_dim, std=cfg.init_std)
        self.k_proj = linear(cfg.d_model, kv_dim, std=cfg.init_std)
        self.v_proj = linear(cfg.d_model, kv_dim, std=cfg.init_std)
        self.out_proj = linear(q_dim, cfg.d_model, std=cfg.residual_init_std)
        self.head_dim, self.dropout, self.span = att.head_dim, att.dropout, span_of(att)

    def __call__(
        self, x_BTD: jax.Array, geometry: Geometry, key: jax.Array | None = None
    ) -> jax.Array:
        B, T, _ = x_BTD.shape
        q_BTNH = apply_rope(self.q_proj(x_BTD).reshape(B, T, -1, self.head_dim), geometry)
        k_BSKH = apply_rope(self.k_proj(x_BTD).reshape(B, T, -1, self.head_dim), geometry)
        v_BSKH = self.v_proj(x_BTD).reshape(B, T, -1, self.head_dim)
        out_BTNH = attend(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            scale=self.head_dim**-0.5,
            span=self.span,
            slopes_N=geometry.slopes_N,
            dropout_rate=self.dropout,
            key=key,
        )
        return self.out_proj(out_BTNH.reshape(B, T, -1))


class ComplexAttention(nnx.Module):
    """Attention with complex queries and keys: the score is Re(q · conj(k)); v is real."""

    def __init__(self, cfg: TransformerConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        att = cfg.attention
        linear = functools.partial(Linear, bias=att.bias, dtype=dtype, rngs=rngs)
        dim = att.num_heads * att.head_dim
        self.q_re = linear(cfg.d_model, dim, std=cfg.init_std)
        self.q_im = linear(cfg.d_model, dim, std=cfg.init_std)
        self.k_re = linear(cfg.d_model, dim, std=cfg.init_std)
        self.k_im = linear(cfg.d_model, dim, std=cfg.init_std)
        self.v_proj = linear(cfg.d_model, dim, std=cfg.init_std)
        self.out_proj = linear(dim, cfg.d_model, std=cfg.residual_init_std)
        self.head_dim, self.dropout, self.span = att.head_dim, att.dropout, span_of(att)

    def __call__(
        self, x_BTD: jax.Array, geometry: Geometry, key: jax.Array | None = None
    ) -> jax.Array:
        B, T, _ = x_BTD.shape
        heads = lambda proj: proj(x_BTD).reshape(B, T, -1, self.head_dim)  # noqa: E731
        # q_re·k_re + q_im·k_im is one dot product over both parts laid side by side.
        q_BTNH = jnp.concatenate(
            apply_complex_rope(heads(self.q_re), heads(self.q_im), geometry), axis=-1
        )
        k_BSNH = jnp.concatenate(
            apply_complex_rope(heads(self.k_re), heads(self.k_im), geometry), axis=-1
        )
        out_BTNH = attend(
            q_BTNH,
            k_BSNH,
            heads(self.v_proj),
            scale=self.head_dim**-0.5,
            span=self.span,
            slopes_N=geometry.slopes_N,
            dropout_rate=self.dropout,
            key=key,
        )
        return self.out_proj(out_BTNH.reshape(B, T, -1))


ATTENTION = {"mha": Attention, "gqa": Attention, "mqa": Attention, "complex": ComplexAttention}
