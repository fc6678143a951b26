"""The JAX model is the reference implementation, in what it computes and in its gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from architectures import CASES, REFERENCE, build, reference_config
from safetensors.numpy import load_file

from conversion import from_torch, to_torch
from light_jax.config import TrainingConfig
from light_jax.parallel.sharding import make_mesh
from light_jax.training.step import summed_loss

TOLERANCE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(params=CASES)
def case(request):
    """(config, weights, expected) of one reference architecture."""
    folder = REFERENCE / request.param
    weights, expected = (
        load_file(folder / f"{name}.safetensors") for name in ("weights", "expected")
    )
    return reference_config(request.param), weights, expected


def assert_reference_gradients(grads, cfg, expected):
    """Gradients as a tree of JAX parameters; what takes no part in the forward pass has zeros."""
    assert jax.tree.all(jax.tree.map(lambda g: g.dtype == jnp.float32, grads))
    ours = to_torch(grads, cfg)
    if cfg.tie_embeddings:
        del ours["lm_head.weight"]
    assert {f"grad:{key}" for key in ours} >= {key for key in expected if key.startswith("grad:")}
    for key, gradient in ours.items():
        wanted = expected.get(f"grad:{key}", np.zeros_like(gradient))
        np.testing.assert_allclose(gradient, wanted, **TOLERANCE, err_msg=key)


def test_logits_loss_and_gradients_equal_the_reference(case):
    cfg, weights, expected = case
    tokens = expected["tokens"]

    def loss_and_logits(params):
        logits = build(cfg, params)(tokens[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return losses.mean(), logits

    params = from_torch(weights, cfg)
    run = jax.jit(jax.value_and_grad(loss_and_logits, has_aux=True))
    (loss, logits), grads = run(params)
    np.testing.assert_allclose(logits, expected["logits"], **TOLERANCE)
    np.testing.assert_allclose(loss, expected["loss"][0], **TOLERANCE)
    assert_reference_gradients(grads, cfg, expected)


def test_the_loss_of_training_equals_the_reference(case):
    """What a step differentiates: hidden states and head into the loss, without whole logits."""
    cfg, weights, expected = case
    tokens = jnp.asarray(expected["tokens"])
    training = TrainingConfig(
        train_data="unused", dtype="float32", seq_len=tokens.shape[1] - 1, model=cfg.model_dump()
    )
    loss_sum = summed_loss(training, make_mesh(training.mesh))
    ones_BT = jnp.ones_like(tokens[:, 1:], jnp.float32)

    def mean_loss(params):
        return loss_sum(params, tokens, ones_BT) / ones_BT.size

    loss, grads = jax.jit(jax.value_and_grad(mean_loss))(from_torch(weights, cfg))
    np.testing.assert_allclose(loss, expected["loss"][0], **TOLERANCE)
    assert_reference_gradients(grads, cfg, expected)


def test_weights_come_back_from_jax_bit_for_bit(case):
    cfg, weights, _ = case
    params = from_torch(weights, cfg)
    back = to_torch(params, cfg)
    assert back.keys() == weights.keys()
    for key, value in back.items():
        assert value.tobytes() == weights[key].tobytes(), key
    again = from_torch(back, cfg)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params))
