"""The layers of a model, one after another: unrolled, or as the body of one loop.

A loop is compiled once, whatever the depth, and what its body gathers and computes is gone before
the next layer begins. Its price is a copy of the weights: a loop reads them from one array.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from light_jax.models.kernels import cudnn, splash
from light_jax.models.layers import MATMUL
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
            run = rematerialized(_call, placement.platform) if recompute is True else _call
            x_BTD = constrain(run(layer, x_BTD, geometry, key))
        return x_BTD
    graphdef = nnx.graphdef(layers[0])
    params_L = _stacked([_as_computed(nnx.state(layer), dtype) for layer in layers])
    keys_L = _stacked(keys)

    def run_one(x_BTD: jax.Array, params: Any, key: jax.Array | None, geometry: Any) -> jax.Array:
        return constrain(nnx.merge(graphdef, placement.gather(params))(x_BTD, geometry, key))

    if recompute is True:
        return _recomputed_loop(
            run_one, placement.cut, constrain, x_BTD, params_L, keys_L, geometry
        )

    def body(x_BTD: jax.Array, inputs: tuple[Any, jax.Array | None]) -> tuple[jax.Array, None]:
        return run_one(x_BTD, *inputs, geometry), None

    # A loop's backward pass is another loop: no common subexpression undoes the recomputation.
    body = jax.checkpoint(body, policy=KEPT, prevent_cse=False)
    return jax.lax.scan(body, x_BTD, (params_L, keys_L))[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _recomputed_loop(
    run_one: Callable[..., jax.Array],
    cut: Constrain,
    whole: Constrain,
    x_BTD: jax.Array,
    params_L: Any,
    keys_L: Any,
    geometry: Any,
) -> jax.Array:
    """x_BTD after a loop of `run_one(x_BTD, params, key, geometry)`, which keeps only each input.

    In the backward pass a layer's gradients take the place of its weights, which nothing reads
    again: one stack, where autodiff of the loop would have two. `keys_L` and `geometry` get none.

    Args:
        cut: x_BTD -> the same, laid out as it is kept.
        whole: the inverse.
    """
    return _forward(run_one, cut, whole, x_BTD, params_L, keys_L, geometry)[0]


def _forward(
    run_one: Callable[..., jax.Array],
    cut: Constrain,
    whole: Constrain,
    x_BTD: jax.Array,
    params_L: Any,
    keys_L: Any,
    geometry: Any,
) -> tuple[jax.Array, Any]:
    def body(x_BTD: jax.Array, inputs: Any) -> tuple[jax.Array, jax.Array]:
        x_BTD = whole(x_BTD)  # or XLA lays out the layer's own work as `cut` does
        return run_one(x_BTD, *inputs, geometry), cut(x_BTD)

    x_BTD, x_LBTD = jax.lax.scan(body, x_BTD, (params_L, keys_L))
    return x_BTD, (x_LBTD, params_L, keys_L, geometry)


def _backward(
    run_one: Callable[..., jax.Array],
    cut: Constrain,
    whole: Constrain,
    kept: Any,
    grad_BTD: jax.Array,
) -> tuple[Any, ...]:
    x_LBTD, params_L, keys_L, geometry = kept

    def body(carry: Any, inputs: Any) -> tuple[Any, None]:
        grad_BTD, stack_L = carry
        index, x_BTD, key = inputs
        params = jax.tree.map(lambda leaf: leaf[index], stack_L)
        run = lambda x_BTD, params: run_one(x_BTD, params, key, geometry)  # noqa: E731
        _, pull_back = jax.vjp(run, whole(x_BTD), params)
        grad_BTD, grads = pull_back(grad_BTD)
        return (grad_BTD, jax.tree.map(lambda leaf, g: leaf.at[index].set(g), stack_L, grads)), None

    inputs = (jnp.arange(x_LBTD.shape[0]), x_LBTD, keys_L)
    (grad_BTD, grads_L), _ = jax.lax.scan(body, (grad_BTD, params_L), inputs, reverse=True)
    return grad_BTD, grads_L, None, None


_recomputed_loop.defvjp(_forward, _backward)


def _call(layer: Any, x_BTD: jax.Array, geometry: Any, key: jax.Array | None) -> jax.Array:
    return layer(x_BTD, geometry, key)


def _stacked(trees: Sequence[Any]) -> Any:
    """One tree, whose leaves have the layers as their first dimension; None stays None."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _is_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name == cudnn.FORWARD


policies = jax.checkpoint_policies
KEPT = policies.save_from_both_policies(
    policies.save_only_these_names(MATMUL, splash.SAVED), _is_attention
)
"""What a layer of a loop keeps for the backward pass, unless all of it is computed again.

Also where nothing was to be computed again: an unrolled program leaves it to XLA, which computes
elementwise operations again where that is cheaper than to keep them. A loop keeps just what it is
told, and to keep everything takes twice the memory (medium, 4 sequences on a v5e: 5.5 GiB, so 2.9)
for more traffic. Weights that a layer gathered are not kept.
"""


def _as_computed(params: Any, dtype: DTypeLike) -> Any:
    """The parameters of a layer with the kernels of matmuls in `dtype`, as Linear casts them."""

    def cast(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if "kernel" in jax.tree_util.keystr(path) else leaf

    return jax.tree_util.tree_map_with_path(cast, params)
