"""Attention layers. Letters: B batch, T query, S key, R row of a cache, N heads, K kv-heads,
G = N/K, H head_dim, D model.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from light_jax.models.layers import Linear
from light_jax.models.placement import Placement
from light_jax.models.transformer.attend import attend, attend_one
from light_jax.models.transformer.cache import Cache
from light_jax.models.transformer.norm import RMSNorm
from light_jax.models.transformer.positional import Geometry, apply_complex_rope, apply_rope
from light_llm.models.transformer.config import TransformerConfig
from light_llm.models.transformer.mask import span_of


class Attention(nnx.Module):
    """Grouped-query attention (Ainslie et al. 2023); mha and mqa are its two ends.

    Query head n reads kv head n // G.
    """

    def __init__(
        self,
        cfg: TransformerConfig,
        layer: int,
        *,
        dtype: DTypeLike,
        placement: Placement,
        rngs: nnx.Rngs,
    ) -> None:
        att = cfg.attention
        linear = functools.partial(Linear, dtype=dtype, rngs=rngs)
        q_dim, kv_dim = att.num_heads * att.head_dim, att.num_kv_heads * att.head_dim
        qkv_bias = att.bias or att.qkv_bias
        self.q_proj = linear(cfg.d_model, q_dim, bias=qkv_bias, std=cfg.init_std)
        self.k_proj = linear(cfg.d_model, kv_dim, bias=qkv_bias, std=cfg.init_std)
        self.v_proj = linear(cfg.d_model, kv_dim, bias=qkv_bias, std=cfg.init_std)
        self.out_proj = linear(q_dim, cfg.d_model, bias=att.bias, std=cfg.residual_init_std)
        norm = functools.partial(RMSNorm, att.head_dim, cfg.norm.eps, placement.platform)
        self.q_norm = norm() if att.qk_norm else None
        self.k_norm = norm() if att.qk_norm else None
        self.head_dim, self.dropout, self.span = att.head_dim, att.dropout, span_of(att, layer)
        self.placement = placement

    def __call__(
        self,
        x_BTD: jax.Array,
        geometry: Geometry,
        key: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> jax.Array:
        B, T, _ = x_BTD.shape

        def heads(proj: Linear, norm: RMSNorm | None = None) -> jax.Array:
            x_BTNH = proj(x_BTD).reshape(B, T, -1, self.head_dim)
            return x_BTNH if norm is None else norm(x_BTNH).astype(x_BTNH.dtype)

        platform = self.placement.platform
        q_BTNH = apply_rope(heads(self.q_proj, self.q_norm), geometry, platform)
        k_BSKH = apply_rope(heads(self.k_proj, self.k_norm), geometry, platform)
        v_BSKH = heads(self.v_proj)
        out_BTNH = attend_through(self, q_BTNH, k_BSKH, v_BSKH, geometry, key, cache)
        return self.out_proj(out_BTNH.reshape(B, T, -1))


class ComplexAttention(nnx.Module):
    """Attention with complex queries and keys: the score is Re(q · conj(k)); v is real."""

    def __init__(
        self,
        cfg: TransformerConfig,
        layer: int,
        *,
        dtype: DTypeLike,
        placement: Placement,
        rngs: nnx.Rngs,
    ) -> None:
        att = cfg.attention
        linear = functools.partial(Linear, dtype=dtype, rngs=rngs)
        dim = att.num_heads * att.head_dim
        qkv_bias = att.bias or att.qkv_bias
        self.q_re = linear(cfg.d_model, dim, bias=qkv_bias, std=cfg.init_std)
        self.q_im = linear(cfg.d_model, dim, bias=qkv_bias, std=cfg.init_std)
        self.k_re = linear(cfg.d_model, dim, bias=qkv_bias, std=cfg.init_std)
        self.k_im = linear(cfg.d_model, dim, bias=qkv_bias, std=cfg.init_std)
        self.v_proj = linear(cfg.d_model, dim, bias=qkv_bias, std=cfg.init_std)
        self.out_proj = linear(dim, cfg.d_model, bias=att.bias, std=cfg.residual_init_std)
        self.head_dim, self.dropout, self.span = att.head_dim, att.dropout, span_of(att, layer)
        self.placement = placement

    def __call__(
        self,
        x_BTD: jax.Array,
        geometry: Geometry,
        key: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> jax.Array:
        B, T, _ = x_BTD.shape

        def heads(proj: Linear) -> jax.Array:
            return proj(x_BTD).reshape(B, T, -1, self.head_dim)

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
    """`attend` over the cache after these keys and values are added to it."""
    scale, slopes_N = layer.head_dim**-0.5, geometry.slopes_N
    if cache is not None and cache.k_BKRH is not None:
        assert geometry.back_BT is not None
        k_BKRH, v_BKRH, back_R = cache.extend(k_BTKH, v_BTKH)
        return attend_one(
            q_BTNH,
            k_BKRH,
            v_BKRH,
            scale=scale,
            back_R=back_R,
            hidden_BR=back_R > geometry.back_BT,  # padding and rows not written yet, too
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
        placement=layer.placement,
        slopes_N=slopes_N,
        back_BT=geometry.back_BT,
        fused=cache is None,
        dropout_rate=layer.dropout,
        key=key,
    )


ATTENTION = {"mha": Attention, "gqa": Attention, "mqa": Attention, "complex": ComplexAttention}
