"""The memory that a program of the model takes, as XLA plans it with all its optimizations."""

import functools

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
