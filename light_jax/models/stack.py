"""The layers of a model, one after another: unrolled, or as the body of one loop.

A loop is compiled once, whatever the depth, and what its body gathers and computes is gone before
the next layer begins. Its price is a copy of the weights: a loop reads them from one array. Where
the windows of layers differ by a pattern, its body has a layer for each entry of the pattern.

Letters: B batch, T position, D model, L layers, P layers in the body of a loop.
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
    params = [_as_computed(nnx.state(layer), dtype) for layer in layers]
    graphdefs = _period([nnx.graphdef(layer) for layer in layers])
    runs = tuple(_run_one(graphdef, placement, constrain) for graphdef in graphdefs)
    rest = len(params) % len(runs)  # the beginning of one more repetition
    for part, some in (
        (slice(0, len(params) - rest), runs),
        (slice(len(params) - rest, None), runs[:rest]),
    ):
        if some:
            loop = functools.partial(_recomputed_loop, some, placement.cut, constrain)
            loop = loop if recompute is True else functools.partial(_loop, some)
            P = len(some)
            params_PL = [_stacked(params[part][place::P]) for place in range(P)]
            keys_PL = [_stacked(keys[part][place::P]) for place in range(P)]
            x_BTD = loop(x_BTD, params_PL, keys_PL, geometry)
    return x_BTD


RunOne = Callable[..., jax.Array]
"""(x_BTD, params, key, geometry) -> x_BTD after a layer."""


def _run_one(graphdef: Any, placement: Placement, constrain: Constrain) -> RunOne:
    def run_one(x_BTD: jax.Array, params: Any, key: jax.Array | None, geometry: Any) -> jax.Array:
        return constrain(nnx.merge(graphdef, placement.gather(params))(x_BTD, geometry, key))

    return run_one


def _period(graphdefs: Sequence[Any]) -> Sequence[Any]:
    """The shortest beginning that all repeat: of length 1, unless the layers' windows differ."""
    for length in range(1, len(graphdefs)):
        if all(one == graphdefs[n % length] for n, one in enumerate(graphdefs)):
            return graphdefs[:length]
    return graphdefs


def _loop(
    runs: tuple[RunOne, ...], x_BTD: jax.Array, params_PL: Any, keys_PL: Any, geometry: Any
) -> jax.Array:
    """x_BTD after a loop whose body runs P layers; P stacks hold those at each place of it."""

    def body(x_BTD: jax.Array, inputs: Any) -> tuple[jax.Array, None]:
        for run_one, params, key in zip(runs, *inputs, strict=True):
            # A loop's backward pass is another loop: no common subexpression undoes this.
            layer = functools.partial(run_one, geometry=geometry)
            x_BTD = jax.checkpoint(layer, policy=KEPT, prevent_cse=False)(x_BTD, params, key)
        return x_BTD, None

    return jax.lax.scan(body, x_BTD, (params_PL, keys_PL))[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _recomputed_loop(
    runs: tuple[RunOne, ...],
    cut: Constrain,
    whole: Constrain,
    x_BTD: jax.Array,
    params_PL: Any,
    keys_PL: Any,
    geometry: Any,
) -> jax.Array:
    """`_loop` that keeps only the input of each layer.

    In the backward pass a layer's gradients take the place of its weights, which nothing reads
    again: one stack, where autodiff of the loop would have two. `keys_PL` and `geometry` get none.

    Args:
        cut: x_BTD -> the same, laid out as it is kept.
        whole: the inverse.
    """
    return _forward(runs, cut, whole, x_BTD, params_PL, keys_PL, geometry)[0]


def _forward(
    runs: tuple[RunOne, ...],
    cut: Constrain,
    whole: Constrain,
    x_BTD: jax.Array,
    params_PL: Any,
    keys_PL: Any,
    geometry: Any,
) -> tuple[jax.Array, Any]:
    def body(x_BTD: jax.Array, inputs: Any) -> tuple[jax.Array, list[jax.Array]]:
        kept = []
        for run_one, params, key in zip(runs, *inputs, strict=True):
            x_BTD = whole(x_BTD)  # or XLA lays out the layer's own work as `cut` does
            kept.append(cut(x_BTD))
            x_BTD = run_one(x_BTD, params, key, geometry)
        return x_BTD, kept

    x_BTD, x_PLBTD = jax.lax.scan(body, x_BTD, (params_PL, keys_PL))
    return x_BTD, (x_PLBTD, params_PL, keys_PL, geometry)


def _backward(
    runs: tuple[RunOne, ...],
    cut: Constrain,
    whole: Constrain,
    kept: Any,
    grad_BTD: jax.Array,
) -> tuple[Any, ...]:
    x_PLBTD, params_PL, keys_PL, geometry = kept

    def body(carry: Any, inputs: Any) -> tuple[Any, None]:
        grad_BTD, stack_PL = carry
        index, x_PBTD, key_P = inputs
        grads_PL, places = [], [*zip(runs, stack_PL, x_PBTD, key_P, strict=True)]
        for run_one, stack_L, x_BTD, key in reversed(places):
            params = jax.tree.map(lambda leaf: leaf[index], stack_L)
            layer = functools.partial(run_one, key=key, geometry=geometry)
            _, pull_back = jax.vjp(layer, whole(x_BTD), params)
            grad_BTD, grads = pull_back(grad_BTD)
            grads_PL.append(jax.tree.map(lambda leaf, g: leaf.at[index].set(g), stack_L, grads))
        return (grad_BTD, grads_PL[::-1]), None

    inputs = (jnp.arange(x_PLBTD[0].shape[0]), x_PLBTD, keys_PL)
    (grad_BTD, grads_PL), _ = jax.lax.scan(body, (grad_BTD, params_PL), inputs, reverse=True)
    return grad_BTD, grads_PL, None, None


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
