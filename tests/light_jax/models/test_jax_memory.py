"""The memory that a program of the model takes, as XLA plans it with all its optimizations."""

import functools

import attention_cases
import jax
import jax.numpy as jnp
import pytest
from architectures import build, lively_params, tiny, tokens_for

from light_jax.models.placement import Placement

pytestmark = pytest.mark.compiled_fully


def test_gradients_take_the_place_of_the_weights_in_a_loop():
    """A further layer adds less to the temporaries than its weights and its gradients.

    On a CPU it is 1.6 times its weights, and 2.1 times where autodiff makes the backward pass.
    """

    def sizes(num_layers):
        cfg = tiny(gradient_checkpointing=True, d_model=128, num_layers=num_layers)
        tokens, params = tokens_for(cfg, 1, 4), lively_params(cfg)
        model = functools.partial(build, cfg, placement=Placement(scanned=True))
        grad = jax.jit(jax.grad(lambda params: jnp.sum(model(params).hidden(tokens))))
        temporaries = grad.lower(params).compile().memory_analysis().temp_size_in_bytes
        return temporaries, sum(leaf.nbytes for leaf in jax.tree.leaves(params["layers"]))

    (two, weights_of_two), (four, weights_of_four) = sizes(2), sizes(4)
    assert four - two < 1.8 * (weights_of_four - weights_of_two)


def kept_on_a_cpu(cfg, length):
    """The sizes of what a model keeps for its backward pass, but for its weights."""
    cpu = attention_cases.placement(jax.devices("cpu"))
    params, tokens = lively_params(cfg), tokens_for(cfg, 2, length)
    weights = {id(leaf) for leaf in jax.tree.leaves(params)}
    model = functools.partial(build, cfg, placement=cpu)
    _, backward = jax.vjp(lambda params: model(params).hidden(tokens), params)
    kept = {id(leaf): leaf for leaf in jax.tree.leaves(backward)}  # one array may serve twice
    return [leaf.size for name, leaf in kept.items() if name not in weights]


@pytest.mark.parametrize("changes", [{}, {"positional": {"encoding": "alibi"}}, {"window": 5}])
def test_on_a_cpu_a_longer_context_keeps_memory_in_proportion(changes):
    """Attention keeps no scores: their number grows with the square of the length."""
    if "window" in changes:
        changes = {"attention": {"mask_type": "sliding_window", "window_size": changes["window"]}}
    short, double, longest = (sum(kept_on_a_cpu(tiny(changes), n)) for n in (4, 8, 16))
    assert longest - double == 2 * (double - short)


@pytest.mark.parametrize("variant, arrays", [("swiglu", 2), ("geglu", 2), ("mlp", 1)])
def test_on_a_cpu_an_ffn_keeps_what_its_first_matmuls_gave(variant, arrays):
    """Neither the activation nor the product, which the last matmul takes, is kept."""
    cfg = tiny(ffn={"variant": variant, "expansion_factor": 40}, num_layers=1)
    assert kept_on_a_cpu(cfg, 5).count(2 * 5 * cfg.ffn_dim) == arrays


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_on_a_cpu_a_norm_keeps_its_input_alone(norm):
    """Its input stands in the residual stream anyway, its result in what the next matmul takes."""

    def as_large_as_the_stream(**changes):
        cfg = tiny(num_layers=1, **changes)
        return kept_on_a_cpu(cfg, 5).count(2 * 5 * cfg.d_model)

    pre = as_large_as_the_stream(norm={"type": norm})
    # Each of the two further norms keeps its input. No sum of its results is kept.
    assert as_large_as_the_stream(norm={"type": norm, "placement": "sandwich"}) == pre + 2
