"""PyTorch keys: their names and order, and how tied weights are loaded."""

from __future__ import annotations

import copy
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch_cases import CASES, REFERENCE, lively, reference_config, tiny, tokens_for

from light_llm.models.transformer import Transformer, TransformerConfig
from light_llm.models.transformer.attention import ATTENTION
from light_llm.models.transformer.block import PLACEMENT
from light_llm.models.transformer.ffn import ACTIVATION, FFN
from light_llm.models.transformer.mask import MASK
from light_llm.models.transformer.norm import NORM
from light_llm.models.transformer.positional import POSITIONAL


def designed_keys(cfg: TransformerConfig) -> list[str]:
    """The key table of the design, written out."""

    def linears(names: str, bias: bool) -> list[str]:
        ends = [".weight", ".bias"] if bias else [".weight"]
        return [name + end for name in names.split() for end in ends]

    att = {"complex": "q_re q_im k_re k_im v_proj out_proj"}
    ffn = {"mlp": "fc1 fc2"}
    norms = {"sandwich": "norm1 norm2 post_norm1 post_norm2"}
    weight = ".norm.weight" if cfg.norm.type == "layernorm" else ".weight"
    layer = [
        "attn." + key
        for key in linears(
            att.get(cfg.attention.variant, "q_proj k_proj v_proj out_proj"), cfg.attention.bias
        )
    ]
    layer += [
        "ffn." + key
        for key in linears(ffn.get(cfg.ffn.variant, "gate_proj up_proj down_proj"), cfg.ffn.bias)
    ]
    layer += [name + weight for name in norms.get(cfg.norm.placement, "norm1 norm2").split()]
    return [
        "tok_emb.weight",
        *(["pos_emb.emb.weight"] if cfg.positional.encoding == "learned" else []),
        *(f"layers.{i}.{key}" for i in range(cfg.num_layers) for key in layer),
        "final_norm" + weight,
        "lm_head.weight",
    ]


@pytest.mark.parametrize("case", CASES)
def test_keys_and_their_order(case):
    model = Transformer(reference_config(case))
    keys = designed_keys(model.cfg)
    assert list(model.state_dict()) == keys
    tied = model.cfg.tie_embeddings
    assert [name for name, _ in model.named_parameters()] == keys[: len(keys) - tied]
    assert load_file(REFERENCE / case / "weights.safetensors").keys() == set(keys)


def test_linear_weights_are_out_by_in():
    model = Transformer(
        tiny(attention={"num_kv_heads": 1, "head_dim": 6}, positional={"encoding": "learned"})
    )
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes["tok_emb.weight"] == shapes["lm_head.weight"] == (31, 16)
    assert shapes["pos_emb.emb.weight"] == (48, 16)
    assert shapes["layers.0.attn.q_proj.weight"] == (24, 16)
    assert shapes["layers.0.attn.k_proj.weight"] == (6, 16)
    assert shapes["layers.0.attn.out_proj.weight"] == (16, 24)
    assert shapes["layers.0.ffn.down_proj.weight"] == (16, 64)


@pytest.mark.parametrize("assign", [False, True])
def test_a_tied_head_may_be_absent_and_stays_tied(assign):
    source = lively(tiny())
    state = copy.deepcopy(source.state_dict())
    for given in (state, {k: v for k, v in state.items() if k != "lm_head.weight"}):
        keys = list(given)
        model = Transformer(tiny()).eval()
        model.load_state_dict(given, assign=assign)
        assert model.lm_head.weight is model.tok_emb.weight
        assert list(given) == keys  # the caller's dictionary is unchanged
        tokens = tokens_for(model.cfg, 1, 5)
        torch.testing.assert_close(model(tokens), source(tokens), rtol=0, atol=0)


def test_a_model_can_be_built_without_memory_and_filled():
    source = lively(tiny())
    with torch.device("meta"):
        model = Transformer(tiny()).eval()
    model.load_state_dict(copy.deepcopy(source.state_dict()), assign=True)
    assert model.lm_head.weight is model.tok_emb.weight
    tokens = tokens_for(model.cfg, 1, 5)
    torch.testing.assert_close(model(tokens), source(tokens), rtol=0, atol=0)


def test_loading_and_writing_import_no_compiler():
    """torch._dynamo takes seconds to import, and a model that is only run needs none of it."""
    code = f"""
import sys
sys.path.append({str(Path(__file__).parents[2])!r})
from torch_cases import CASES, REFERENCE, reference_config
from light_llm.checkpoint import load_transformer
from light_llm.generate import generate
from light_llm.sampling import Sampling
for case in CASES:
    cfg = reference_config(case)
    model = load_transformer(REFERENCE / case / "weights.safetensors", cfg)
    if cfg.attention.mask_type != "bidirectional":
        list(generate(model, [1, 2], Sampling(max_tokens=2)))
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("strict", [False, True])
def test_a_tied_head_that_differs_is_refused(strict):
    state = {key: value.clone() for key, value in Transformer(tiny()).state_dict().items()}
    state["lm_head.weight"][3, 1] += 1e-3
    with pytest.raises(
        RuntimeError, match=r"lm_head.weight differs from tok_emb.weight.*tie_embed"
    ):
        Transformer(tiny()).load_state_dict(state, strict=strict)


def test_the_rules_hold_inside_another_module():
    state = {f"0.{key}": value for key, value in Transformer(tiny()).state_dict().items()}
    del state["0.lm_head.weight"]
    torch.nn.Sequential(Transformer(tiny())).load_state_dict(state)


def test_an_untied_head_is_required():
    cfg = tiny(tie_embeddings=False)
    model = lively(cfg)
    assert not torch.equal(model.lm_head.weight, model.tok_emb.weight)
    state = model.state_dict()
    Transformer(cfg).load_state_dict(state)
    del state["lm_head.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*lm_head.weight"):
        Transformer(cfg).load_state_dict(state)


def test_strict_means_strict():
    state = Transformer(tiny()).state_dict()
    state["layers.9.surplus"] = state.pop("layers.1.attn.q_proj.weight")
    with pytest.raises(RuntimeError, match=r"(?s)layers.1.attn.q_proj.weight.*layers.9.surplus"):
        Transformer(tiny()).load_state_dict(state)


@pytest.mark.parametrize(
    "table, section, field",
    [
        (ATTENTION, "attention", "variant"),
        (MASK, "attention", "mask_type"),
        (POSITIONAL, "positional", "encoding"),
        (FFN, "ffn", "variant"),
        (ACTIVATION, "ffn", "activation"),
        (NORM, "norm", "type"),
        (PLACEMENT, "norm", "placement"),
    ],
)
def test_tables_have_a_row_for_each_choice(table, section, field):
    config = TransformerConfig.model_fields[section].annotation
    assert list(table) == list(typing.get_args(config.model_fields[field].annotation))


def imported_by(statement: str) -> set[str]:
    """Names of the top-level modules that a fresh interpreter holds after `statement`."""
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_a_config_needs_no_torch():
    statement = "from light_llm.models.transformer import TransformerConfig; TransformerConfig()"
    assert not imported_by(statement) & {"torch", "jax", "flax"}


def test_the_torch_side_needs_no_jax():
    statement = (
        "import light_llm.generate, light_llm.cli.run; "
        "from light_llm.models.transformer import Transformer"
    )
    modules = imported_by(statement)
    assert "torch" in modules
    assert not modules & {"jax", "flax", "light_jax", "conversion"}
