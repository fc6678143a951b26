"""One layer: attention and ffn around the residual stream.

Letters: B batch, T position, D model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from flax import nnx
from jax.typing import DTypeLike

from light_jax.models.layers import dropout, split_key
from light_jax.models.placement import Placement
from light_jax.models.transformer.attention import ATTENTION
from light_jax.models.transformer.cache import Cache
from light_jax.models.transformer.ffn import FFN
from light_jax.models.transformer.norm import NORM
from light_jax.models.transformer.positional import Geometry
from light_llm.models.transformer.config import TransformerConfig

Layer = Callable[[jax.Array], jax.Array]


def pre(x: jax.Array, sublayer: Layer, norm: Layer, post_norm: Layer | None) -> jax.Array:
    return x + sublayer(norm(x))


def post(x: jax.Array, sublayer: Layer, norm: Layer, post_norm: Layer | None) -> jax.Array:
    return norm(x + sublayer(x))


def sandwich(x: jax.Array, sublayer: Layer, norm: Layer, post_norm: Layer | None) -> jax.Array:
    assert post_norm is not None
    return x + post_norm(sublayer(norm(x)))


PLACEMENT = {"pre": pre, "post": post, "sandwich": sandwich}


class Block(nnx.Module):
    def __init__(
        self,
        cfg: TransformerConfig,
        layer: int,
        *,
        dtype: DTypeLike,
        placement: Placement,
        rngs: nnx.Rngs,
    ) -> None:
        norm = functools.partial(NORM[cfg.norm.type], cfg.d_model, cfg.norm.eps, placement.platform)
        self.attn = ATTENTION[cfg.attention.variant](
            cfg, layer, dtype=dtype, placement=placement, rngs=rngs
        )
        self.ffn = FFN[cfg.ffn.variant](cfg, dtype=dtype, placement=placement, rngs=rngs)
        self.norm1 = norm()
        self.norm2 = norm()
        sandwiched = cfg.norm.placement == "sandwich"
        self.post_norm1 = norm() if sandwiched else None
        self.post_norm2 = norm() if sandwiched else None
        self.placement, self.parallel = cfg.norm.placement, cfg.parallel_layers
        self.dropout = cfg.dropout

    def __call__(
        self,
        x_BTD: jax.Array,
        geometry: Geometry,
        key: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> jax.Array:
        """The residual stream [B, T, D], float32, after this layer."""
        attn_key, attn_drop, ffn_key, ffn_drop = split_key(key, 4)

        def attn(x: jax.Array) -> jax.Array:
            return dropout(self.attn(x, geometry, attn_key, cache), self.dropout, attn_drop)

        def ffn(x: jax.Array) -> jax.Array:
            return dropout(self.ffn(x, ffn_key), self.dropout, ffn_drop)

        if self.parallel:
            return x_BTD + attn(self.norm1(x_BTD)) + ffn(self.norm2(x_BTD))
        join = PLACEMENT[self.placement]
        x_BTD = join(x_BTD, attn, self.norm1, self.post_norm1)
        return join(x_BTD, ffn, self.norm2, self.post_norm2)
