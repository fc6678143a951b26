"""The layers of a model, one after another: unrolled, or as the body of one loop.

A loop is compiled once, whatever the depth, and what its body gathers and computes is gone before
the next layer begins. Its price is a copy of the weights: a loop reads them from one array.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from light_jax.models.kernels.splash import SAVED
from light_jax.models.placement import Placement
from light_jax.models.remat import rematerialized

Constrain = Callable[[jax.Array], jax.Array]


def run_layers(
    layers: Sequence[Any],
    x_BTD: jax.Array,
    geometry: Any,
    keys: Sequence[jax.Array | None],
    *,
    recompute: bool | str,
    dtype: DTypeLike,
    placement: Placement,
    constrain: Constrain,
) -> jax.Array:
    """x_BTD after all `layers`, `layer(x_BTD, geometry, key)` each.

    Args:
        recompute: what the backward pass computes again: nothing (False), all (True), or all but
            the results of matmuls ("matmuls"), which is for a loop: unrolled layers keep what XLA
            wants to keep.
        dtype: of matmuls.
        constrain: applied to the residual stream after each layer.
    """
    if not placement.scanned:
        for layer, key in zip(layers, keys, strict=True):
            run = rematerialized(_call) if recompute is True else _call
            x_BTD = constrain(run(layer, x_BTD, geometry, key))
        return x_BTD
    graphdef = nnx.graphdef(layers[0])

    def body(x_BTD: jax.Array, inputs: tuple[Any, jax.Array | None]) -> tuple[jax.Array, None]:
        params, key = inputs
        layer = nnx.merge(graphdef, placement.gather(params))
        return constrain(layer(x_BTD, geometry, key)), None

    # A loop's backward pass is another loop: no common subexpression undoes the recomputation.
    body = jax.checkpoint(body, policy=KEPT[recompute], prevent_cse=False)
    params_L = _stacked([_as_computed(nnx.state(layer), dtype) for layer in layers])
    return jax.lax.scan(body, x_BTD, (params_L, _stacked(keys)))[0]


def _call(layer: Any, x_BTD: jax.Array, geometry: Any, key: jax.Array | None) -> jax.Array:
    return layer(x_BTD, geometry, key)


def _stacked(trees: Sequence[Any]) -> Any:
    """One tree, whose leaves have the layers as their first dimension; None stays None."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


policies = jax.checkpoint_policies
MATMULS = policies.save_from_both_policies(
    policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(SAVED)
)
KEPT = {
    # An unrolled program leaves it to XLA, which computes elementwise operations again where that
    # is cheaper than to keep them. A loop keeps just what it is told, and to keep everything takes
    # twice the memory (medium, 4 sequences on a v5e: 5.5 GiB, with MATMULS 2.9) for more traffic.
    False: MATMULS,
    "matmuls": MATMULS,
    True: policies.nothing_saveable,
}
"""recompute -> what a layer keeps for the backward pass. Weights that it gathered are in none."""


def _as_computed(params: Any, dtype: DTypeLike) -> Any:
    """The parameters of a layer with the kernels of matmuls in `dtype`, as Linear casts them."""

    def cast(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if "kernel" in jax.tree_util.keystr(path) else leaf

    return jax.tree_util.tree_map_with_path(cast, params)
