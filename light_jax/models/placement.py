"""Where a model runs: its kernels and the way its layers are run depend on that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

Lookup = Callable[[jax.Array, jax.Array], jax.Array]


def _as_is(x: Any) -> Any:
    return x


def rows_of(table_VD: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows of a token table, in float32."""
    # cast before the lookup: its gradient is a sum over tokens, which must not be in 16 bits
    return table_VD.astype(jnp.float32)[tokens]


@dataclasses.dataclass(frozen=True)
class Placement:
    """The devices of a model, which need not be here: a program can be compiled for others.

    The default is one device of any kind: portable kernels, nothing sharded.
    """

    mesh: Mesh | None = None
    batch_axes: tuple[str, ...] = ()
    """The mesh axes over which the rows of a batch are cut."""
    head_axis: str | None = None
    """The mesh axis over which attention heads are cut; it divides the query heads."""
    gather: Callable[[Any], Any] = _as_is
    """A layer's parameters -> the same, as the layer's matmuls need them."""
    cut: Callable[[jax.Array], jax.Array] = _as_is
    """The residual stream [B, T, D] -> the same, each device of the head axis with a part of it."""
    lookup: Lookup = rows_of
    """(a token table, tokens) -> the tokens' rows in float32."""
    scanned: bool = False
    """Layers are the body of one loop, and not unrolled."""

    @property
    def platform(self) -> str | None:
        """`cpu`, `gpu` or `tpu`."""
        return None if self.mesh is None else self.mesh.devices.flat[0].platform


ANYWHERE = Placement()
"""One device of any kind."""
