"""Norms, computed and returned in float32. Letters: B batch, T position, D model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from light_jax.models.remat import computed_again


class RMSNorm(nnx.Module):
    """x · rsqrt(mean(x²) + eps) · weight over the last axis (Zhang & Sennrich 2019)."""

    def __init__(self, dim: int, eps: float, platform: str | None) -> None:
        self.weight = nnx.Param(jnp.ones(dim, jnp.float32))
        self.eps, self.platform = eps, platform

    def __call__(self, x: jax.Array) -> jax.Array:
        def normed(weight: jax.Array, x: jax.Array) -> jax.Array:
            x = x.astype(jnp.float32)
            x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
            return x * weight.astype(jnp.float32)

        return computed_again(normed, self.platform)(self.weight[...], x)


class LayerNorm(nnx.Module):
    """(x - mean) · rsqrt(var + eps) · weight over the last axis, no bias (Ba et al. 2016)."""

    def __init__(self, dim: int, eps: float, platform: str | None) -> None:
        self.weight = nnx.Param(jnp.ones(dim, jnp.float32))
        self.eps, self.platform = eps, platform

    def __call__(self, x: jax.Array) -> jax.Array:
        def normed(weight: jax.Array, x: jax.Array) -> jax.Array:
            x = x.astype(jnp.float32)
            x = x - jnp.mean(x, axis=-1, keepdims=True)
            x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
            return x * weight.astype(jnp.float32)

        return computed_again(normed, self.platform)(self.weight[...], x)


NORM = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}
