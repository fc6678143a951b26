"""The twins agree on every architecture: all pairs of options, and at random over all of them."""

from __future__ import annotations

import os

import jax
import numpy as np
import pytest
from architectures import (
    LENGTHS,
    build,
    config_of,
    configs,
    lively_params,
    name_of,
    pairwise,
    tiny,
    tokens_for,
)
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conversion import from_torch, to_torch
from light_jax.models.transformer import positional as jax_positional

torch = pytest.importorskip("torch")

from light_llm.models.transformer import Transformer as TorchTransformer  # noqa: E402
from light_llm.models.transformer import positional as torch_positional  # noqa: E402

torch.set_num_threads(1)  # threads only slow models as small as these

TOLERANCE = 2e-5  # see `deviations`
EXAMPLES = int(os.environ.get("LIGHT_LLM_EXAMPLES", "2000"))


def deviations(cfg, tokens, seed):
    """Of the logits and of each gradient: the largest difference between JAX and PyTorch.

    The differentiated function is a random mixture of the logits, which reaches every parameter at
    full strength (the gradient of a mean loss is 1/(B·T) of that, and its errors hide in an
    absolute tolerance). Gradients are then sums of many terms and reach hundreds, where float32
    cannot hold 2e-5: so differences are relative to a tensor's largest number, if above 1. A bias
    is measured by its weight's gradient: the terms of its own may cancel, and those of k_proj's do
    without rope, since softmax ignores what it adds to a query's scores.
    """
    params = lively_params(cfg, seed)
    torch_model = TorchTransformer(cfg).train()  # checkpointing is on in training alone
    torch_model.load_state_dict({k: torch.tensor(v) for k, v in to_torch(params, cfg).items()})
    crossed = from_torch(torch_model.state_dict(), cfg)
    assert jax.tree.all(jax.tree.map(np.array_equal, crossed, params))

    rng = np.random.default_rng(seed)
    mixture = rng.standard_normal((*tokens.shape, cfg.vocab_size), np.float32)

    def mixed(params):
        logits = build(cfg, params)(tokens)
        return (logits * mixture).sum(), logits

    (_, jax_logits), jax_grads = jax.jit(jax.value_and_grad(mixed, has_aux=True))(crossed)
    torch_logits = torch_model(torch.tensor(tokens).long())
    (torch_logits * torch.tensor(mixture)).sum().backward()

    theirs = {
        name: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()
        for name, p in torch_model.named_parameters()
    }
    ours = to_torch(jax_grads, cfg)
    assert ours.keys() - theirs.keys() <= {"lm_head.weight"}
    largest_of = {name: np.abs(gradient).max() for name, gradient in theirs.items()}
    scales = {
        name: max(1.0, n, largest_of.get(name.removesuffix("bias") + "weight", 0.0))
        for name, n in largest_of.items()
    }
    found = {name: np.abs(ours[name] - theirs[name]).max() / scales[name] for name in theirs}
    difference = np.abs(np.asarray(jax_logits) - torch_logits.detach().numpy())
    found["logits"] = difference.max() / max(1.0, np.abs(jax_logits).max())
    return found


def largest(found):
    """(deviation, name of the tensor), a NaN before any number."""
    return max((np.inf if np.isnan(value) else value, name) for name, value in found.items())


@pytest.mark.parametrize("row", pairwise(), ids=name_of)
def test_twins_agree_on_every_pair_of_options(row):
    cfg = config_of(row)
    deviation, name = largest(deviations(cfg, tokens_for(cfg, 2, 12), seed=0))
    assert deviation < TOLERANCE, name


@pytest.mark.parametrize("base, scaling", [(1e4, None), (2.0, 0.7), (500.0, 3.0)])
def test_rotary_tables_agree_at_far_positions(base, scaling):
    """A last bit of a frequency would be 1e-4 rad at position 2000: the twins share all bits."""
    cfg = tiny(positional={"rope_base": base, "rope_scaling": scaling})
    ours = jax.jit(jax_positional.Rope(cfg, nnx.Rngs(0)).geometry)(jax.numpy.arange(4096))
    theirs = torch_positional.Rope(cfg).geometry(torch.arange(4096))
    np.testing.assert_allclose(ours.cos_TH, theirs.cos_TH.numpy(), rtol=0, atol=2e-7)
    np.testing.assert_allclose(ours.sin_TH, theirs.sin_TH.numpy(), rtol=0, atol=2e-7)


def test_sinusoidal_tables_agree_at_far_positions():
    cfg = tiny(d_model=64, positional={"encoding": "sinusoidal"})
    zeros = np.zeros((1, 4096, 64), np.float32)
    ours = jax.jit(jax_positional.Sinusoidal(cfg, nnx.Rngs(0)))(zeros, jax.numpy.arange(4096))
    theirs = torch_positional.Sinusoidal(cfg)(torch.tensor(zeros), torch.arange(4096))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=2e-7)


@pytest.mark.slow
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(cfg=configs(), length=st.sampled_from(LENGTHS), seed=st.integers(0, 9))
def test_twins_agree_on_any_architecture(cfg, length, seed):
    tokens = tokens_for(cfg, 2, min(length, cfg.max_seq_len), seed)
    deviation, name = largest(deviations(cfg, tokens, seed))
    assert deviation < TOLERANCE, name
