"""Muon: momentum of which the update's singular values are made nearly one (Jordan et al. 2024).

As torch.optim.Muon computes it with Nesterov's momentum and `adjust_lr_fn="match_rms_adamw"`, the
factor of Liu et al. 2025 (arXiv 2502.16982), with which one learning rate serves AdamW and Muon.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPS = 1e-7


class MuonState(NamedTuple):
    momentum: Any


def scale_by_muon(
    momentum: float, dtype: str, stored: Callable[[Any], Any] | None = None
) -> optax.GradientTransformation:
    """Gradients of matrices [A, B] -> directions with the root mean square that AdamW's have.

    Args:
        dtype: of the iteration; the momentum is float32.
        stored: the sharding of each leaf of a tree of gradients. Each device then iterates on whole
            matrices: one is gathered, in `dtype`, as the one before the last is cut again.
    """

    def init(params: Any) -> MuonState:
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(grads: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        del params
        buffers = jax.tree.map(
            lambda buffer, grad: buffer + (1 - momentum) * (grad - buffer), state.momentum, grads
        )
        ahead = jax.tree.map(
            lambda buffer, grad: buffer - (buffer - grad) * (1 - momentum), buffers, grads
        )
        if stored is None:
            return jax.tree.map(lambda x_AB: _direction(x_AB, dtype), ahead), MuonState(buffers)
        return _in_turn(ahead, stored(ahead), dtype), MuonState(buffers)

    return optax.GradientTransformation(init, update)


def _in_turn(ahead: Any, stored: Any, dtype: str) -> Any:
    """The directions of matrices that are cut, with two of these whole at a time at most.

    XLA, left to itself, gathers all of them before the first iteration.
    """
    leaves, tree = jax.tree.flatten(ahead)
    done: list[jax.Array] = []
    for x_AB, cut in zip(leaves, jax.tree.leaves(stored), strict=True):
        if len(done) >= 2:
            x_AB, done[-2] = jax.lax.optimization_barrier((x_AB, done[-2]))
        whole = NamedSharding(cut.mesh, PartitionSpec())
        x_AB = jax.lax.with_sharding_constraint(x_AB.astype(dtype), whole)
        done.append(jax.lax.with_sharding_constraint(_direction(x_AB, dtype), cut))
    return jax.tree.unflatten(tree, done)


def _direction(x_AB: jax.Array, dtype: str) -> jax.Array:
    scale = 0.2 * math.sqrt(max(x_AB.shape))
    return scale * orthogonalized(x_AB.astype(dtype)).astype(jnp.float32)


def orthogonalized(x_AB: jax.Array) -> jax.Array:
    """Five steps of a quintic Newton-Schulz iteration, in x's dtype: U S V^T becomes nearly U V^T.

    The singular values end between 0.7 and 1.2, those far below the largest excepted.
    """
    a, b, c = COEFFICIENTS
    # The iteration commutes with transposing. The small side's products are the cheap ones, and a
    # square matrix is turned as torch has it, [out, in], so that both round alike.
    turned = x_AB.shape[0] >= x_AB.shape[1]
    x_AB = x_AB.T if turned else x_AB
    norm = jnp.sqrt(jnp.sum(jnp.square(x_AB.astype(jnp.float32)))).astype(x_AB.dtype)
    x_AB = x_AB / jnp.maximum(norm, jnp.asarray(EPS, x_AB.dtype))
    for _ in range(ITERATIONS):
        gram_AA = _dot(x_AB, x_AB.T).astype(x_AB.dtype)
        power_AA = (b * gram_AA.astype(jnp.float32) + c * _dot(gram_AA, gram_AA)).astype(x_AB.dtype)
        x_AB = (a * x_AB.astype(jnp.float32) + _dot(power_AA, x_AB)).astype(x_AB.dtype)
    return x_AB.T if turned else x_AB


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """The float32 product; factors of 16 bits are multiplied exactly."""
    return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
