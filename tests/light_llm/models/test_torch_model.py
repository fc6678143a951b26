"""The PyTorch model: equal to the reference vectors, and the laws that its variants obey."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torch_cases import CASES, DECODABLE, REFERENCE, lively, reference_config, tiny, tokens_for

from light_llm.models.transformer import Transformer
from light_llm.models.transformer.attend import attend
from light_llm.models.transformer.mask import Span
from light_llm.models.transformer.positional import (
    Geometry,
    Rope,
    alibi_slopes,
    apply_complex_rope,
    apply_rope,
)

TOLERANCE = 2e-5


@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradients_equal_the_reference(case):
    cfg, expected = reference_config(case), load_file(REFERENCE / case / "expected.safetensors")
    model = Transformer(cfg)
    model.load_state_dict(load_file(REFERENCE / case / "weights.safetensors"))
    tokens = expected["tokens"].long()

    logits = model(tokens[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()

    close = {"rtol": 0, "atol": TOLERANCE}
    torch.testing.assert_close(logits, expected["logits"], **close)
    torch.testing.assert_close(loss, expected["loss"][0], **close)
    gradients = {
        f"grad:{name}": parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    assert gradients.keys() == {key for key in expected if key.startswith("grad:")}
    for key, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, expected[key], **close, msg=lambda m, k=key: f"{k}: {m}"
        )


def influence(model: Transformer, tokens_1T: torch.Tensor) -> torch.Tensor:
    """[t, s]: whether the logits at t depend on the token embedding at s, by gradient."""
    embedded = []
    hook = model.tok_emb.register_forward_hook(lambda *call: embedded.append(call[-1]))
    logits = model(tokens_1T)[0]
    hook.remove()
    rows = [
        torch.autograd.grad(logits[t].square().sum(), embedded[0], retain_graph=True)[0][0]
        for t in range(len(logits))
    ]
    return torch.stack([row.abs().sum(dim=-1) != 0 for row in rows])


@pytest.mark.parametrize("name", DECODABLE)
def test_the_future_has_no_gradient(name):
    model = lively(DECODABLE[name])
    assert not influence(model, tokens_for(model.cfg, 1, 12)).triu(diagonal=1).any()


@pytest.mark.parametrize("variant", ["gqa", "complex"])
@pytest.mark.parametrize("encoding", ["rope", "alibi"])
def test_masks_show_exactly_what_they_say(variant, encoding):
    T, W = 12, 3
    everything = torch.ones(T, T, dtype=torch.bool)
    expected = {
        "causal": everything.tril(),
        "bidirectional": everything,
        "sliding_window": everything.tril() & everything.triu(diagonal=-W),  # t - W <= s <= t
    }
    for mask_type, sees in expected.items():
        window = {"window_size": W} if mask_type == "sliding_window" else {}
        cfg = tiny(
            num_layers=1,
            attention={"variant": variant, "mask_type": mask_type, **window},
            positional={"encoding": encoding},
        )
        model = lively(cfg)
        assert torch.equal(influence(model, tokens_for(cfg, 1, T)), sees), mask_type


def test_attention_equals_its_formula():
    """softmax(scale · q·k - slope_n · |t - s|) · v, query head n with kv head n // G, by loops."""
    torch.manual_seed(0)
    B, T, N, K, H = 2, 7, 6, 3, 4
    q, k, v = torch.randn(B, T, N, H), torch.randn(B, T, K, H), torch.randn(B, T, K, H + 1)
    slopes = alibi_slopes(N)
    out = attend(q, k, v, scale=0.3, span=Span(2, 0), slopes_N=slopes)
    for b, t, n in [(0, 0, 0), (0, 6, 1), (1, 3, 2), (1, 6, 5), (0, 4, 3)]:
        seen = range(max(0, t - 2), t + 1)
        scores = [0.3 * q[b, t, n] @ k[b, s, n // 2] - slopes[n] * (t - s) for s in seen]
        weights = torch.stack(scores).softmax(dim=0)
        expected = sum(w * v[b, s, n // 2] for w, s in zip(weights, seen, strict=True))
        torch.testing.assert_close(out[b, t, n], expected)


def test_grouped_heads_are_multi_head_with_repeated_keys_and_values():
    gqa = lively(tiny(attention={"variant": "gqa", "num_kv_heads": 2}))
    mha = Transformer(tiny(attention={"variant": "mha"})).eval()
    state = gqa.state_dict()
    for key in state:
        if ".k_proj." in key or ".v_proj." in key:
            state[key] = state[key].unflatten(0, (2, 4)).repeat_interleave(2, dim=0).flatten(0, 1)
    mha.load_state_dict(state)
    tokens = tokens_for(gqa.cfg, 2, 9)
    torch.testing.assert_close(gqa(tokens), mha(tokens))


def test_complex_attention_without_imaginary_weights_is_mha():
    no_positions = {"encoding": "none"}
    mha = lively(tiny(attention={"variant": "mha"}, positional=no_positions))
    cmplx = Transformer(tiny(attention={"variant": "complex"}, positional=no_positions)).eval()
    state = {
        k.replace("q_proj", "q_re").replace("k_proj", "k_re"): v
        for k, v in mha.state_dict().items()
    }
    for key in cmplx.state_dict():
        if ".q_im." in key or ".k_im." in key:
            state[key] = torch.zeros_like(cmplx.state_dict()[key])
    cmplx.load_state_dict(state)
    tokens = tokens_for(mha.cfg, 2, 9)
    torch.testing.assert_close(cmplx(tokens), mha(tokens))


def test_rope_scores_depend_on_distance_alone():
    geometry = Rope(tiny(positional={"rope_base": 100.0, "rope_scaling": 2.0})).geometry
    torch.manual_seed(0)
    q, k, q_im, k_im = torch.randn(4, 1, 2, 4, 4)

    def score(t: int, s: int) -> torch.Tensor:
        at_t, at_s = geometry(torch.tensor([t, t])), geometry(torch.tensor([s, s]))
        real = (apply_rope(q, at_t) * apply_rope(k, at_s)).sum(dim=-1)
        q_parts, k_parts = apply_complex_rope(q, q_im, at_t), apply_complex_rope(k, k_im, at_s)
        products = [a * b for a, b in zip(q_parts, k_parts, strict=True)]
        return torch.stack([real, sum(products).sum(dim=-1)])

    torch.testing.assert_close(score(3, 1), score(20, 18))
    assert not torch.allclose(score(3, 1), score(3, 2), atol=1e-3)


def test_rope_by_hand():
    """Base 100, head_dim 4: frequencies 1 and 1/10; halves (0, 2) and (1, 3) turn together."""
    angles = torch.tensor([1.0, 0.1, 1.0, 0.1]) * 3 / 2  # position 3, scaling 2
    geometry = Rope(tiny(positional={"rope_base": 100.0, "rope_scaling": 2.0})).geometry(
        torch.tensor([3])
    )
    torch.testing.assert_close(geometry, Geometry(angles.cos()[None], angles.sin()[None]))
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    half = torch.tensor([-3.0, -4.0, 1.0, 2.0])
    turned = apply_rope(x.reshape(1, 1, 1, 4), geometry).flatten()
    torch.testing.assert_close(turned, x * angles.cos() + half * angles.sin())


def test_alibi_slopes_by_hand():
    assert alibi_slopes(1).tolist() == [1 / 256]
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    # of 4: 1/4, 1/16, …; then the 1st and 3rd of 8: 1/2, 1/8
    assert alibi_slopes(6).tolist() == [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]


def test_sinusoidal_by_hand():
    model = Transformer(
        tiny(d_model=6, attention={"num_heads": 2}, positional={"encoding": "sinusoidal"})
    )
    added = model.pos_emb(torch.zeros(1, 1, 6), torch.tensor([5]))[0, 0]
    angles = [5 / 10000 ** (2 * j / 6) for j in range(3)]
    expected = torch.tensor(
        [f(a) for a in map(torch.tensor, angles) for f in (torch.sin, torch.cos)]
    )
    torch.testing.assert_close(added, expected)


def test_precisions_of_a_bfloat16_model():
    """Linears multiply in bfloat16; norms, the residual stream and the logits are float32."""
    cfg = tiny(norm={"placement": "sandwich"}, positional={"encoding": "learned"})
    exact = lively(cfg)
    model = lively(cfg).to(torch.bfloat16)
    seen: dict[str, set[torch.dtype]] = {"linear": set(), "norm": set(), "block": set()}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(
                lambda m, i, o: seen["linear"].update((i[0].dtype, o.dtype))
            )
        elif "norm" in name:
            module.register_forward_hook(lambda m, i, o: seen["norm"].add(o.dtype))
        elif name.startswith("layers.") and name.count(".") == 1:
            module.register_forward_hook(
                lambda m, i, o: seen["block"].update((i[0].dtype, o.dtype))
            )
    tokens = tokens_for(cfg, 2, 11)
    logits = model(tokens)
    assert seen == {"linear": {torch.bfloat16}, "norm": {torch.float32}, "block": {torch.float32}}
    assert logits.dtype == torch.float32
    assert (logits - exact(tokens)).abs().max() < 0.05 * exact(tokens).abs().max()


def test_alibi_distances_are_exact_in_bfloat16():
    """bfloat16 has 8 bits: a bias computed in it would round distances above 256."""
    T = 600
    q, k = torch.zeros(2, 1, T, 1, 8, dtype=torch.bfloat16)
    v = torch.arange(T).reshape(1, T, 1, 1).float()
    slopes = torch.tensor([1 / 256])
    low = attend(q, k, v.bfloat16(), scale=1.0, span=Span(None, 0), slopes_N=slopes)
    high = attend(
        q.float(), k.float(), v.bfloat16().float(), scale=1.0, span=Span(None, 0), slopes_N=slopes
    )
    torch.testing.assert_close(low, high.bfloat16(), rtol=0, atol=0)


def test_gradient_checkpointing_changes_nothing():
    tokens = tokens_for(tiny(), 2, 9)
    gradients = []
    for kind in (False, True, "matmuls"):
        model = lively(tiny(gradient_checkpointing=kind, dropout=0.2)).train()
        torch.manual_seed(5)
        model(tokens).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2])


def test_gradient_checkpointing_computes_again_what_it_says():
    """Matrix multiplications of a forward and a backward pass, by kind."""
    counts = {}
    for kind in (False, True, "matmuls"):
        model = lively(tiny(gradient_checkpointing=kind)).train()
        with FlopCounterMode(display=False) as counter:
            model(tokens_for(model.cfg, 2, 9)).square().mean().backward()
        counts[kind] = counter.get_total_flops()
    assert counts["matmuls"] == counts[False] < counts[True]


@pytest.mark.parametrize(
    "where", [{"dropout": 0.5}, {"attention": {"dropout": 0.5}}, {"ffn": {"dropout": 0.5}}]
)
@pytest.mark.parametrize("ffn", ["swiglu", "mlp"])
def test_each_dropout_acts_in_training_only(where, ffn):
    where = {**where, "ffn": {"variant": ffn, **where.get("ffn", {})}}
    model = lively(tiny(**where))
    plain = lively(tiny(ffn={"variant": ffn}))
    tokens = tokens_for(model.cfg, 2, 9)
    torch.testing.assert_close(model(tokens), plain(tokens), rtol=0, atol=0)
    assert not torch.allclose(model.train()(tokens), plain(tokens), atol=1e-2)


def test_sequences_beyond_max_seq_len_are_refused():
    model = Transformer(tiny(max_seq_len=8))
    assert model(tokens_for(model.cfg, 1, 8)).shape == (1, 8, 31)
    with pytest.raises(ValueError, match="9 tokens exceed max_seq_len=8"):
        model(tokens_for(model.cfg, 1, 9))


def test_initial_values():
    cfg = tiny(
        vocab_size=500,
        d_model=64,
        num_layers=8,
        init_std=0.05,
        attention={"bias": True},
        ffn={"bias": True},
        norm={"placement": "sandwich"},
        positional={"encoding": "learned"},
        tie_embeddings=False,
    )
    torch.manual_seed(0)
    for name, parameter in Transformer(cfg).named_parameters():
        if "norm" in name:
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            std = 0.05
            if name.startswith("pos_emb"):
                std = 0.02
            elif "out_proj" in name or "down_proj" in name:
                std = 0.05 / 4  # sqrt(2 · 8 layers)
            assert parameter.std().item() == pytest.approx(std, rel=0.08), name
            assert abs(parameter.mean().item()) < 0.1 * std, name


def test_the_seed_decides_the_initial_values():
    first, again, other = (lively(tiny(), seed).state_dict() for seed in (0, 0, 1))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first["tok_emb.weight"], other["tok_emb.weight"])
