"""Decoding in JAX: the cache is the full forward pass, the text is PyTorch's.

Letters: B batch, T position, V vocab.
"""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from architectures import CASES, DOCUMENTS, lively, reference_config, tiny, tokens_for
from flax import nnx

from conversion import to_torch
from light_jax.generate import Knobs, Plan, choose, generate, generate_batch, keep_top_p, moved
from light_llm.errors import UserError
from light_llm.generate import generate_batch as generate_in_torch
from light_llm.generate import keep_top_p as keep_top_p_in_torch
from light_llm.models.transformer import Transformer as TorchTransformer
from light_llm.models.transformer.mask import span_of
from light_llm.sampling import Sampling

RAGGED = [[3, 1, 4, 1, 5], [2], [7, 1, 8, 2, 8, 1, 8], [6, 2]]


def causal(cfg):
    """The architecture with a mask that can be decoded: the same weights fit."""
    if cfg.attention.mask_type != "bidirectional":
        return cfg
    attention = cfg.attention.model_copy(update={"mask_type": "causal"})
    return cfg.model_copy(update={"attention": attention})


def windowed(variant, encoding, size):
    mask = {"mask_type": "sliding_window", "window_size": size}
    return tiny(
        max_seq_len=48,
        logit_softcap=3.0,
        attention={"variant": variant, **mask},
        positional={"encoding": encoding},
    )


DECODABLE = {case: causal(reference_config(case)) for case in CASES} | {
    "window-of-1": windowed("complex", "rope", 1),
    "window-and-alibi": windowed("gqa", "alibi", 4),
    "window-and-learned": windowed("mha", "learned", 3),
    "documents-pattern-and-rope": tiny(
        DOCUMENTS, max_seq_len=48, attention={"window_pattern": [3, None]}
    ),
    "documents-window-and-learned": tiny(
        windowed("mqa", "learned", 3).model_dump(exclude_none=True), DOCUMENTS
    ),
}


def twin(model) -> TorchTransformer:
    """The PyTorch model with the same weights."""
    state = to_torch(nnx.state(model, nnx.Param), model.cfg)
    torch_model = TorchTransformer(model.cfg).eval()
    torch_model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    return torch_model


@pytest.mark.parametrize("name", DECODABLE)
def test_cached_decoding_equals_the_full_forward(name):
    """A prompt with padding, then a token at a time: every position's logits, of every row."""
    model = lively(DECODABLE[name])
    T, first, pad_B = 15, 9, np.array([0, 3, 8])
    tokens = tokens_for(model.cfg, 3, T)
    cache = model.new_cache(T, jnp.asarray(pad_B))
    graphdef, params = nnx.split(model)

    @jax.jit
    def some(params, tokens_BT, cache):
        model = nnx.merge(graphdef, params)
        return model.logits(model.hidden(tokens_BT, cache=cache)), cache

    logits = []
    for part in (slice(first), *(slice(t, t + 1) for t in range(first, T))):
        logits_BTV, cache = some(params, tokens[:, part], cache)
        logits.append(logits_BTV)
    logits_BTV = np.concatenate(logits, axis=1)
    # at once: each row without its padding, and what comes after it is not seen
    alone_BT = np.stack([np.roll(row, -pad) for row, pad in zip(tokens, pad_B, strict=True)])
    alone_BTV = jax.jit(lambda params: nnx.merge(graphdef, params)(alone_BT))(params)
    for cached_TV, alone_TV, pad in zip(logits_BTV, alone_BTV, pad_B, strict=True):
        np.testing.assert_allclose(cached_TV[pad:], alone_TV[: T - pad], rtol=0, atol=2e-5)
    for n, layer in enumerate(cache):
        window = span_of(model.cfg.attention, n).left
        rows = T if window is None else min(T, window + 1)
        assert layer.k_BKRH.shape[2] == layer.v_BKRH.shape[2] == rows


@pytest.mark.parametrize(
    "name",
    ["default-gqa-rope-swiglu-rms-pre", "window-and-learned", "documents-window-and-learned"],
)
@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 0},
        {"seed": 3},
        {"seed": 1, "top_k": 9, "top_p": 0.8, "repetition_penalty": 1.3, "temperature": 0.7},
    ],
    ids=["greedy", "sampled", "everything"],
)
def test_both_frameworks_write_the_same(name, how):
    model = lively(DECODABLE[name])
    sampling = Sampling(60, **how)
    ours = list(generate_batch(model, RAGGED, sampling))
    assert ours == list(generate_in_torch(twin(model), RAGGED, sampling))
    alone = list(generate(model, RAGGED[0], sampling))
    assert [row[0] for row in ours if row[0] is not None] == alone
    eos = alone[5]
    assert list(generate(model, RAGGED[0], sampling, eos)) == alone[: alone.index(eos)]


def test_nothing_is_compiled_again_within_a_bucket(caplog):
    model = lively(tiny(max_seq_len=48))
    list(generate(model, [1, 2, 3], Sampling(8, top_p=0.9)))
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for length in (1, 4, 17, 30):
            how = Sampling(5 + length // 2, temperature=0.1 * length, top_p=0.02 * length)
            list(generate(model, [*range(1, length), 0], how))
        again = [r.getMessage() for r in caplog.records if "Finished XLA comp" in r.getMessage()]
        assert again == []
        list(generate(model, [5] * 31, Sampling(33, top_p=0.9)))
    compiled = [r.getMessage() for r in caplog.records if "Finished XLA comp" in r.getMessage()]
    assert any("following" in line for line in compiled)  # so the messages are there


def test_top_p_of_a_large_vocabulary_is_that_of_pytorch():
    """Few ids, or more of them than are looked at first."""
    rng = np.random.default_rng(0)
    for scale in (6.0, 0.01):
        logits_BV = scale * rng.standard_normal((2, 5000), np.float32)
        for p in (0.1, 0.9):
            kept = np.isfinite(np.asarray(jax.jit(keep_top_p)(logits_BV, p)))
            wanted = keep_top_p_in_torch(torch.from_numpy(logits_BV).double(), p).isfinite()
            # a sum of thousands in float32 may end one id apart
            assert abs(kept.sum(axis=1) - wanted.sum(dim=1).numpy()).max() <= kept.sum() // 1000
            assert (kept & ~wanted.numpy()).sum() <= kept.sum() // 1000


def test_sampling_frequencies():
    logits = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.3]))
    draw_B = next(Sampling(1, seed=0).draws(4000))
    ids = choose(
        jnp.broadcast_to(logits, (4000, 4)),
        None,
        draw_B,
        Plan(False, 2, False, False),
        Knobs(1, 1, 1),
    )
    assert np.bincount(ids, minlength=4) / 4000 == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=0.03)


def test_ids_without_probability_are_never_drawn():
    """XLA's sums are no running sums: by rounding they fall, and rise where nothing is added."""
    logits_V = np.random.default_rng(0).standard_normal(50257).astype(np.float32)
    top = np.argsort(logits_V)[-40:]
    probs_V = np.zeros(len(logits_V))
    probs_V[top] = np.exp(logits_V[top])
    edges = np.unique(np.cumsum(probs_V) / probs_V.sum())
    draws = np.concatenate([edges + shift for shift in (-6e-8, 0, 6e-8)]).clip(0, 1 - 2**-20)
    logits_BV = jnp.broadcast_to(logits_V, (len(draws), len(logits_V)))
    plan = Plan(greedy=False, top_k=40, top_p=False, penalize=False)
    ids = choose(logits_BV, None, draws.astype(np.float32), plan, Knobs(1, 1, 1))
    assert set(np.asarray(ids).tolist()) <= set(top.tolist())


def test_sixteen_bits():
    model = moved(lively(tiny()), "bfloat16")
    assert {x.dtype for x in jax.tree.leaves(nnx.state(model, nnx.Param))} == {
        jnp.dtype("bfloat16")
    }
    assert len(list(generate(model, [1, 2, 3], Sampling(5, seed=0)))) == 5


def test_what_cannot_be_continued_is_refused_at_the_call():
    model = lively(tiny())
    with pytest.raises(UserError, match="the prompt is empty"):
        generate(model, [], Sampling(5))
    with pytest.raises(UserError, match="16 tokens leave no room"):
        generate(model, [1] * 16, Sampling(5))
    with pytest.raises(UserError, match="cannot write text token by token"):
        generate(lively(tiny(attention={"mask_type": "bidirectional"})), [1], Sampling(5))
    model.final_norm.weight[...] = jnp.nan * model.final_norm.weight[...]
    with pytest.raises(UserError, match="logits are not finite"):
        list(generate(model, [1], Sampling(5)))
