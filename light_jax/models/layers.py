"""The leaves that PyTorch has built in: linear, embedding, dropout.

Three precisions: parameters are stored in float32 (or bfloat16, see `light_jax.state`), matmuls
take their inputs in the compute dtype, reductions (norms, softmax, loss) and the residual stream
are float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from light_jax.models.placement import Lookup, rows_of

MATMUL = "matmul"
"""The name of a weight's matmul, by which the backward pass may keep its result."""


def matmul_precision(dtype: DTypeLike) -> jax.lax.Precision:
    """float32 means float32: without HIGHEST a GPU or TPU would multiply in fewer bits."""
    if jnp.dtype(dtype) == jnp.float32:
        return jax.lax.Precision.HIGHEST
    return jax.lax.Precision.DEFAULT


def einsum_float32(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """The einsum of two arrays of one dtype, summed and returned in float32."""
    return jnp.einsum(
        spec, a, b, precision=matmul_precision(a.dtype), preferred_element_type=jnp.float32
    )


class Linear(nnx.Module):
    """x [..., I] -> x @ kernel [I, O] + bias [O], computed and returned in `dtype`."""

    def __init__(
        self, in_dim: int, out_dim: int, *, bias: bool, std: float, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        init = nnx.initializers.normal(std)
        self.kernel = nnx.Param(init(rngs.params(), (in_dim, out_dim), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(out_dim, jnp.float32)) if bias else None
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        # One 2-D matmul: XLA:CPU is several times slower on a batched one.
        x_2d = x.astype(self.dtype).reshape(-1, x.shape[-1])
        kernel = self.kernel[...].astype(self.dtype)
        y_2d = jnp.matmul(x_2d, kernel, precision=matmul_precision(self.dtype))
        y_2d = checkpoint_name(y_2d, MATMUL)
        if self.bias is not None:
            # in float32, so that the bias's gradient, a sum over tokens, is in float32 too
            y_2d = y_2d.astype(jnp.float32) + self.bias[...].astype(jnp.float32)
            y_2d = y_2d.astype(self.dtype)
        return y_2d.reshape(*x.shape[:-1], -1)


class Embedding(nnx.Module):
    """Rows of weight [rows, dim] by index, returned in float32 (they start the residual stream).

    Args:
        lookup: (weight, index) -> the rows, for a weight that is cut over devices.
    """

    def __init__(
        self, rows: int, dim: int, *, std: float, rngs: nnx.Rngs, lookup: Lookup = rows_of
    ) -> None:
        self.weight = nnx.Param(nnx.initializers.normal(std)(rngs.params(), (rows, dim)))
        self.lookup = lookup

    def __call__(self, index: jax.Array) -> jax.Array:
        return self.lookup(self.weight[...], index)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero each element with probability `rate`, scale the rest by 1 / (1 - rate).

    The identity without a key (evaluation) or with rate 0. Srivastava et al. 2014.
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def split_key(key: jax.Array | None, num: int) -> tuple[jax.Array | None, ...]:
    """`num` independent keys, or `num` times None where dropout is off."""
    return (None,) * num if key is None else tuple(jax.random.split(key, num))
