"""llm-parity PREFIX: both models, stage by stage; what differs is found and named."""

from __future__ import annotations

import numpy as np
import pytest
from architectures import (
    CASES,
    DOCUMENTS,
    REFERENCE,
    lively_params,
    reference_config,
    tiny,
    tokens_for,
)
from flax import nnx
from safetensors.numpy import load_file

from conversion import from_torch, to_torch

torch = pytest.importorskip("torch")

from light_jax.parity.activations import TOLERANCE, compare, first_diverging  # noqa: E402
from light_jax.parity.checkpoint import unequal_weights  # noqa: E402
from light_jax.parity.report import stage_table, stage_verdict  # noqa: E402
from light_llm.models.transformer import Transformer as TorchTransformer  # noqa: E402

torch.set_num_threads(1)  # threads only slow models as small as these


def pair(cfg, weights):
    """(JAX parameters, PyTorch model) with the same weights."""
    model = TorchTransformer(cfg)
    model.load_state_dict({key: torch.tensor(value) for key, value in weights.items()})
    return from_torch(weights, cfg), model


@pytest.mark.parametrize("case", CASES)
def test_every_stage_of_the_reference_models_agrees(case):
    cfg = reference_config(case)
    params, model = pair(cfg, load_file(REFERENCE / case / "weights.safetensors"))
    expected = load_file(REFERENCE / case / "expected.safetensors")
    assert unequal_weights(params, model) == []
    stages = compare(params, model, expected["tokens"][:, :-1])
    assert first_diverging(stages, 2e-6) is None  # far below what the command allows
    assert stages[-1].max_abs < 2e-6
    assert stage_verdict(stages, TOLERANCE["float32"]).startswith(f"the same: all {len(stages)} ")

    names = [stage.name for stage in stages]
    assert names[0] == "tok_emb"
    assert names[-2:] == ["final_norm", "logits"]
    for i in range(cfg.num_layers):  # every module that PyTorch ran, the block's own output last
        inside = [name for name in names if name.startswith(f"layers.{i}.")]
        assert {f"layers.{i}.{part}" for part in ("norm1", "attn", "norm2", "ffn")} <= {*inside}
        assert f"layers.{i}.attn.out_proj" in inside
        assert names.index(f"layers.{i}") > max(map(names.index, inside))


SMALL = tiny(DOCUMENTS)


def perturbed(params, layer):
    """One weight of a query projection, a thousandth larger than the rest: JAX's side alone."""
    flat = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(params)}
    path = ("layers", layer, "attn", "q_proj", "kernel")
    flat[path] = flat[path].at[3, 5].add(1e-3)
    return nnx.from_flat_state((path, nnx.Param(value)) for path, value in flat.items())


def another_activation(model, layer):
    model.layers[layer].ffn.activation = "gelu"


def another_window(model, layer):
    model.layers[layer].attn.span = model.layers[layer].attn.span._replace(left=4)


def another_eps(model, layer):
    model.layers[layer].norm2.eps = 0.1


def swapped_halves(model, layer):
    """As if q_proj had been cut into heads another way."""
    with torch.no_grad():
        weight = model.layers[layer].attn.q_proj.weight
        weight.copy_(weight.roll(weight.shape[0] // 2, dims=0))


@pytest.mark.parametrize(
    "damage, named, before",
    [
        (another_activation, "layers.1.ffn.down_proj", "layers.1.ffn.up_proj"),
        (another_window, "layers.1.attn.out_proj", "layers.1.attn.v_proj"),
        (another_eps, "layers.1.norm2", "layers.1.attn"),
        (swapped_halves, "layers.1.attn.q_proj", "layers.1.norm1"),
    ],
)
def test_a_broken_layer_is_found_and_named(damage, named, before):
    params, model = pair(SMALL, to_torch(lively_params(SMALL), SMALL))
    tokens = tokens_for(SMALL, 2, 12)
    assert first_diverging(compare(params, model, tokens), TOLERANCE["float32"]) is None
    damage(model, layer=1)
    stages = compare(params, model, tokens)
    verdict = stage_verdict(stages, TOLERANCE["float32"])
    assert f"the first to diverge is {named} (layer 1)" in verdict
    assert verdict.endswith(f"the last before it that agrees is {before}")
    table = "\n".join(stage_table(stages, TOLERANCE["float32"]))
    assert f"{named} " in table  # the layer is shown whole, the others by what matters
    assert "layers.0.ffn " in table
    assert "layers.0.ffn.up_proj" not in table


def test_one_weight_that_differs_is_found():
    params, model = pair(SMALL, to_torch(lively_params(SMALL), SMALL))
    params = perturbed(params, layer=1)
    assert unequal_weights(params, model) == ["layers.1.attn.q_proj.weight"]
    stages = compare(params, model, tokens_for(SMALL, 2, 12))
    parted = first_diverging(stages, TOLERANCE["float32"])
    assert parted is not None
    assert (parted.name, parted.layer) == ("layers.1.attn.q_proj", 1)


def test_a_stage_that_is_not_finite_never_agrees():
    params, model = pair(SMALL, to_torch(lively_params(SMALL), SMALL))
    with torch.no_grad():
        model.final_norm.weight[0] = torch.nan
    parted = first_diverging(compare(params, model, tokens_for(SMALL, 1, 4)), tolerance=1e9)
    assert parted is not None
    assert (parted.name, parted.relative) == ("final_norm", np.inf)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bit_matmuls_agree_to_their_own_precision(dtype):
    """Also under gradient checkpointing, and where autocast meets alibi's float32 bias."""
    cfg = tiny(gradient_checkpointing=True, positional={"encoding": "alibi"})
    params, model = pair(cfg, to_torch(lively_params(cfg), cfg))
    stages = compare(params, model, tokens_for(cfg, 2, 12), dtype)
    assert first_diverging(stages, TOLERANCE[dtype]) is None
    assert first_diverging(stages, TOLERANCE["float32"]) is not None  # they are not float32
