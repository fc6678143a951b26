"""Attention layers, and the cache that lets them run a token at a time.

Letters: B batch, T query, S key, R row of the cache, N heads, K kv-heads, G = N/K, H head_dim,
D model.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from light_jax.models.layers import Linear
from light_jax.models.transformer.attend import Span, attend, attend_one
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


@jax.tree_util.register_dataclass
@dataclass
class Cache:
    """One layer's keys (rotated) and values so far: first a prompt's, then those of one token each.

    The column c of a batch lies in row c mod R of the buffers; R is at most what a window shows.
    A function under jit takes and returns it; in between, its fields change as PyTorch's do.
    """

    span: Span = field(metadata={"static": True})
    size: int = field(metadata={"static": True})  # columns that there will be at most
    pad_B: jax.Array  # columns that stand empty before each row's first token
    length: jax.Array | int = 0  # columns so far
    k_BKRH: jax.Array | None = None
    v_BKRH: jax.Array | None = None

    def positions(self, T: int) -> jax.Array:
        """Of the next T columns [B, T]; 0 where a row stands empty."""
        return jnp.maximum(self.length + jnp.arange(T) - self.pad_B[:, None], 0)

    def empty(self, back_R: jax.Array) -> jax.Array:
        """Which columns [B, R], so far back, stand empty or are not there yet."""
        return self.length - 1 - back_R < self.pad_B[:, None]

    def fill(self, k_BTKH: jax.Array, v_BTKH: jax.Array) -> None:
        """Begin with the T columns of a prompt."""
        T, left = k_BTKH.shape[1], self.span.left
        R = self.size if left is None else min(self.size, left + 1)
        column_R = (T - 1) - (T - 1 - np.arange(R)) % R  # the last that belongs into each row
        self.k_BKRH, self.v_BKRH = (
            jnp.where((column_R >= 0)[:, None], x.transpose(0, 2, 1, 3)[:, :, column_R], 0)
            for x in (k_BTKH, v_BTKH)
        )
        self.length = jnp.int32(T)

    def extend(
        self, k_B1KH: jax.Array, v_B1KH: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Append one column; returns all keys and values, and how far back [R] each row lies."""
        assert self.k_BKRH is not None
        assert self.v_BKRH is not None
        R = self.k_BKRH.shape[2]
        row = self.length % R
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=row, axis=2)
        self.k_BKRH = put(self.k_BKRH, k_B1KH.transpose(0, 2, 1, 3))
        self.v_BKRH = put(self.v_BKRH, v_B1KH.transpose(0, 2, 1, 3))
        self.length = self.length + 1
        return self.k_BKRH, self.v_BKRH, (row - jnp.arange(R)) % R


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
        self,
        x_BTD: jax.Array,
        geometry: Geometry,
        key: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> jax.Array:
        B, T, _ = x_BTD.shape
        q_BTNH = apply_rope(self.q_proj(x_BTD).reshape(B, T, -1, self.head_dim), geometry)
        k_BSKH = apply_rope(self.k_proj(x_BTD).reshape(B, T, -1, self.head_dim), geometry)
        v_BSKH = self.v_proj(x_BTD).reshape(B, T, -1, self.head_dim)
        out_BTNH = attend_through(self, q_BTNH, k_BSKH, v_BSKH, geometry, key, cache)
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
        self,
        x_BTD: jax.Array,
        geometry: Geometry,
        key: jax.Array | None = None,
        cache: Cache | None = None,
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
        v_BSNH = heads(self.v_proj)
        out_BTNH = attend_through(self, q_BTNH, k_BSNH, v_BSNH, geometry, key, cache)
        return self.out_proj(out_BTNH.reshape(B, T, -1))


def attend_through(
    layer: Attention | ComplexAttention,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    geometry: Geometry,
    key: jax.Array | None,
    cache: Cache | None,
) -> jax.Array:
    """What the queries of a layer gather, from these keys and values and from those cached."""
    scale, slopes_N = layer.head_dim**-0.5, geometry.slopes_N
    if cache is not None and cache.k_BKRH is not None:
        k_BKRH, v_BKRH, back_R = cache.extend(k_BTKH, v_BTKH)
        return attend_one(
            q_BTNH,
            k_BKRH,
            v_BKRH,
            scale=scale,
            back_R=back_R,
            empty_BR=cache.empty(back_R),
            slopes_N=slopes_N,
        )
    if cache is not None:
        cache.fill(k_BTKH, v_BTKH)
    return attend(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        scale=scale,
        span=layer.span,
        slopes_N=slopes_N,
        pad_B=None if cache is None else cache.pad_B,
        dropout_rate=layer.dropout,
        key=key,
    )


ATTENTION = {"mha": Attention, "gqa": Attention, "mqa": Attention, "complex": ComplexAttention}
