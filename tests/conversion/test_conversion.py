"""Weights between the layouts: keys and their order, what is refused, files that either side reads.

That a round trip is the identity and that both models compute the same is in
tests/light_jax/models.
"""

from __future__ import annotations

import json
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from conversion import from_torch, load_jax, load_torch, to_torch
from conversion.mapping import keys, table
from light_jax.models.transformer import Transformer
from light_llm.errors import UserError
from light_llm.models.transformer import TransformerConfig

REFERENCE = Path(__file__).parents[1] / "reference/model"
CASES = sorted(path.name for path in REFERENCE.iterdir())
TIED = "default-gqa-rope-swiglu-rms-pre"
UNTIED = "mha-learned-mlp-gelu-layernorm-post"
VARIED = [TIED, UNTIED, "complex-bidirectional-bias-rope-scaled", "mqa-alibi-geglu-rms-sandwich"]


def reference(case: str) -> SimpleNamespace:
    folder = REFERENCE / case
    return SimpleNamespace(
        cfg=TransformerConfig.model_validate_json((folder / "config.json").read_text()),
        weights=load_file(folder / "weights.safetensors"),
        expected=load_file(folder / "expected.safetensors"),
        file=folder / "weights.safetensors",
    )


def designed_keys(cfg: TransformerConfig) -> list[str]:
    """The key table of the design, written out."""
    attention = {"complex": "q_re q_im k_re k_im v_proj out_proj"}
    ffn = {"mlp": "fc1 fc2"}
    norms = {"sandwich": "norm1 norm2 post_norm1 post_norm2"}
    norm = ".norm.weight" if cfg.norm.type == "layernorm" else ".weight"

    def linears(prefix: str, names: str, bias: bool) -> list[str]:
        ends = [".weight", ".bias"] if bias else [".weight"]
        return [f"{prefix}.{name}{end}" for name in names.split() for end in ends]

    result = ["tok_emb.weight"]
    result += ["pos_emb.emb.weight"] * (cfg.positional.encoding == "learned")
    for i in range(cfg.num_layers):
        names = attention.get(cfg.attention.variant, "q_proj k_proj v_proj out_proj")
        result += linears(f"layers.{i}.attn", names, cfg.attention.bias)
        names = ffn.get(cfg.ffn.variant, "gate_proj up_proj down_proj")
        result += linears(f"layers.{i}.ffn", names, cfg.ffn.bias)
        names = norms.get(cfg.norm.placement, "norm1 norm2")
        result += [f"layers.{i}.{name}{norm}" for name in names.split()]
    return [*result, f"final_norm{norm}", "lm_head.weight"]


@pytest.mark.parametrize("case", CASES)
def test_keys_come_in_the_order_of_the_design_and_of_pytorch(case):
    ref = reference(case)
    designed = designed_keys(ref.cfg)
    assert keys(ref.cfg) == designed
    state_dict = to_torch(from_torch(ref.weights, ref.cfg), ref.cfg)
    assert list(state_dict) == designed
    torch_model = pytest.importorskip("light_llm.models.transformer.model").Transformer(ref.cfg)
    assert list(torch_model.state_dict()) == designed
    parameters = [(name, tuple(p.shape)) for name, p in torch_model.named_parameters()]
    assert parameters == [(entry.key, entry.shape) for entry in table(ref.cfg)]


@pytest.mark.parametrize("case", CASES)
def test_from_torch_gives_the_state_of_the_model(case):
    """The same tree, shapes and dtypes as `nnx.split`, so that it merges and trains."""
    ref = reference(case)
    fresh = nnx.eval_shape(lambda: Transformer(ref.cfg, rngs=nnx.Rngs(0)))
    wanted = nnx.split(fresh, nnx.Param)[1]
    given = from_torch(ref.weights, ref.cfg)
    assert jax.tree.structure(given) == jax.tree.structure(wanted)
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(given)] == [
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(wanted)
    ]


def test_nested_dicts_of_arrays_are_accepted():
    ref = reference(UNTIED)
    pure = nnx.to_pure_dict(from_torch(ref.weights, ref.cfg))
    for tree in (pure, jax.tree.map(np.asarray, pure)):
        back = to_torch(tree, ref.cfg)
        assert all(np.array_equal(back[key], ref.weights[key]) for key in ref.weights)


def test_only_linear_weights_are_transposed():
    ref = reference(UNTIED)
    params = from_torch(ref.weights, ref.cfg)
    flat = {path: variable.get_value() for path, variable in nnx.to_flat_state(params)}
    for entry in table(ref.cfg):
        linear = entry.path[-1] == "kernel"
        assert entry.transposed == linear
        stored = ref.weights[entry.key]
        np.testing.assert_array_equal(flat[entry.path], stored.T if linear else stored)


@pytest.mark.parametrize("case", [TIED, UNTIED])
def test_a_state_dict_has_its_own_memory(case):
    """It is contiguous (safetensors ignores strides) and writable, and overlaps nothing else."""
    ref = reference(case)
    params = from_torch(ref.weights, ref.cfg)
    state_dict = to_torch(params, ref.cfg)
    for key, value in state_dict.items():
        assert value.flags.c_contiguous, key
        assert value.flags.writeable, key
        value += 1  # changes neither the parameters nor another key
    for key, value in to_torch(params, ref.cfg).items():
        np.testing.assert_array_equal(value, ref.weights[key], err_msg=key)
        np.testing.assert_array_equal(state_dict[key], value + 1, err_msg=key)
    head, embedding = state_dict["lm_head.weight"], state_dict["tok_emb.weight"]
    assert not np.shares_memory(head, embedding)


def test_parameters_do_not_follow_their_source():
    torch = pytest.importorskip("torch")
    ref = reference(TIED)
    source = {key: torch.tensor(value) for key, value in ref.weights.items()}
    params = from_torch(source, ref.cfg)
    for value in source.values():
        value.add_(1)
    for key, value in to_torch(params, ref.cfg).items():
        np.testing.assert_array_equal(value, ref.weights[key], err_msg=key)


def test_a_state_dict_of_views_is_written_with_its_values(tmp_path):
    """PyTorch's `weight.T` of a JAX kernel is a view; what lands in a file must be its rows."""
    ref = reference(UNTIED)
    views = {
        key: np.asfortranarray(value) if value.ndim == 2 else value
        for key, value in ref.weights.items()
    }
    assert not views["layers.0.attn.q_proj.weight"].flags.c_contiguous
    save_file(to_torch(from_torch(views, ref.cfg), ref.cfg), tmp_path / "w.safetensors")
    written = load_file(tmp_path / "w.safetensors")
    assert written.keys() == ref.weights.keys()
    for key, value in written.items():
        assert value.tobytes() == ref.weights[key].tobytes(), key


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "float32"])
def test_any_float_becomes_float32_exactly(dtype, tmp_path):
    torch = pytest.importorskip("torch")
    save_torch = pytest.importorskip("safetensors.torch").save_file
    ref = reference(TIED)
    rounded = {
        k: torch.tensor(v).bfloat16().to(getattr(torch, dtype)) for k, v in ref.weights.items()
    }
    save_torch(rounded, tmp_path / "w.safetensors")
    loaded = nnx.split(load_jax(tmp_path / "w.safetensors", ref.cfg), nnx.Param)[1]
    for params in (from_torch(rounded, ref.cfg), loaded):
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        for key, value in to_torch(params, ref.cfg).items():
            np.testing.assert_array_equal(value, rounded[key].float().numpy(), err_msg=key)


def test_every_key_that_does_not_fit_is_in_one_message():
    ref = reference(TIED)
    broken = dict(ref.weights)
    del broken["final_norm.weight"], broken["layers.1.ffn.up_proj.weight"]
    broken["layers.7.extra"] = np.zeros(3)
    broken["layers.0.attn.k_proj.weight"] = broken["layers.0.attn.k_proj.weight"].T
    with pytest.raises(UserError) as caught:
        from_torch(broken, ref.cfg)
    assert str(caught.value).splitlines()[1:] == [
        "  missing layers.1.ffn.up_proj.weight [64, 24]",
        "  missing final_norm.weight [24]",
        "  unexpected layers.7.extra [3]",
        "  layers.0.attn.k_proj.weight has shape [24, 6], the config says [6, 24]",
    ]


def test_every_parameter_that_does_not_fit_is_in_one_message():
    ref = reference(TIED)
    tree = nnx.to_pure_dict(from_torch(ref.weights, ref.cfg))
    del tree["layers"][0]["norm1"], tree["tok_emb"]
    tree["lm_head"] = {"weight": jnp.zeros((67, 24))}  # a tied model has none
    kernel = tree["layers"][1]["attn"]["q_proj"]
    kernel["kernel"] = kernel["kernel"][:, :5]
    with pytest.raises(ValueError, match="do not fit the config") as caught:
        to_torch(tree, ref.cfg)
    for problem in (
        "missing tok_emb.weight",
        "missing layers.0.norm1.weight",
        "unexpected lm_head.weight",
        "layers.1.attn.q_proj.kernel has shape (24, 5), not (24, 24)",
    ):
        assert problem in str(caught.value)


def test_a_tied_head_may_be_absent_but_not_differ():
    ref = reference(TIED)
    without = {key: value for key, value in ref.weights.items() if key != "lm_head.weight"}
    params, same = from_torch(without, ref.cfg), from_torch(ref.weights, ref.cfg)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, same))
    head = ref.weights["lm_head.weight"].copy()
    head[3, 1] += 1e-6
    with pytest.raises(UserError, match=r"lm_head.weight differs from tok_emb.weight.*tie_embed"):
        from_torch({**without, "lm_head.weight": head}, ref.cfg)
    with pytest.raises(UserError, match=r"lm_head.weight has shape \[3, 24\]"):
        from_torch({**without, "lm_head.weight": head[:3]}, ref.cfg)


def test_an_untied_head_is_required():
    ref = reference(UNTIED)
    del ref.weights["lm_head.weight"]
    with pytest.raises(UserError, match=r"missing lm_head.weight \[67, 24\]"):
        from_torch(ref.weights, ref.cfg)


@pytest.mark.parametrize("case", VARIED)
def test_both_sides_load_a_checkpoint_and_a_bare_file(case, tmp_path):
    torch = pytest.importorskip("torch")
    ref = reference(case)
    tokens = ref.expected["tokens"][:, :-1]
    params = from_torch(ref.weights, ref.cfg)
    save_file(to_torch(params, ref.cfg), tmp_path / "best.safetensors")
    snapshot = {"seq_len": 16, "model": ref.cfg.model_dump(), "checkpoint": {"format": 1}}
    (tmp_path / "best.config.json").write_text(json.dumps(snapshot))
    bare = ref.file  # with no config beside it under the file's own name
    for where, config in [(tmp_path / "best", None), (bare, ref.cfg), (str(bare), ref.cfg)]:
        in_jax = load_jax(where, config)(tokens)
        in_torch = load_torch(where, config)(torch.tensor(tokens).long())
        np.testing.assert_allclose(in_jax, ref.expected["logits"], rtol=0, atol=2e-5)
        np.testing.assert_allclose(in_torch.detach(), in_jax, rtol=0, atol=2e-5)


def test_a_state_dict_enters_pytorch_strictly_and_without_a_warning():
    torch = pytest.importorskip("torch")
    from light_llm.models.transformer import Transformer as TorchTransformer

    ref = reference(TIED)
    state_dict = to_torch(from_torch(ref.weights, ref.cfg), ref.cfg)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensors = {key: torch.from_numpy(value) for key, value in state_dict.items()}
    TorchTransformer(ref.cfg).load_state_dict(tensors, strict=True)


def test_files_that_cannot_be_loaded(tmp_path):
    ref = reference(TIED)
    with pytest.raises(UserError, match="there is no checkpoint 'best'"):
        load_jax(tmp_path / "best")
    whole = ref.file.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_jax(tmp_path / "cut.safetensors", ref.cfg)
    deeper = ref.cfg.model_copy(update={"num_layers": 3})
    with pytest.raises(UserError, match=r"missing layers.2.attn.q_proj.weight \[24, 24\]"):
        load_jax(ref.file, deeper)


@pytest.mark.parametrize("load", [load_jax, load_torch])
def test_changed_bytes_are_noticed(load, tmp_path):
    if load is load_torch:
        pytest.importorskip("torch")
    ref = reference(TIED)
    data = bytearray(ref.file.read_bytes())
    files = {".safetensors": [len(data), zlib.crc32(data)]}
    config = {"model": ref.cfg.model_dump(), "checkpoint": {"files": files}}
    (tmp_path / "best.config.json").write_text(json.dumps(config))
    (tmp_path / "best.safetensors").write_bytes(data)
    load(tmp_path / "best")
    data[-5] ^= 1
    (tmp_path / "best.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="bytes are not those written"):
        load(tmp_path / "best")
