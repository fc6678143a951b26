"""Dropout of the JAX model: its rate, and a mask of its own for each place where it acts."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import build, lively_params, tiny, tokens_for
from flax import nnx

from light_jax.models.layers import dropout
from light_jax.models.transformer.attend import attend
from light_llm.models.transformer.mask import Span

SILU_2, GELU_2 = 2 / (1 + math.exp(-2)), 1 + math.erf(2**0.5)  # of 2


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_at_its_rate_and_scales_the_rest(rate):
    x = jnp.full((100, 1000), 3.0)
    out = dropout(x, rate, jax.random.key(0))
    zeros = float((out == 0).mean())
    assert zeros == pytest.approx(rate, abs=4 * (rate * (1 - rate) / x.size) ** 0.5)
    np.testing.assert_allclose(out[out != 0], 3.0 / (1 - rate), rtol=1e-6)
    assert dropout(x, rate, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x
    assert dropout(x.astype(jnp.bfloat16), rate, jax.random.key(0)).dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, dropout(x, rate, jax.random.key(0)))


def assert_independent(masks):
    """Boolean masks of rate one half: each is half full, and any two agree half of the time."""
    for mask in masks:
        assert mask.mean() == pytest.approx(0.5, abs=4 * 0.5 / mask.size**0.5)
    for a, b in itertools.combinations(masks, 2):
        assert (a == b).mean() == pytest.approx(0.5, abs=4 * 0.5 / a.size**0.5)


def silenced(cfg, changes):
    """A model whose parameters are zero, but for norms and for `changes` by the path's end."""
    params = lively_params(cfg)
    for path, variable in nnx.to_flat_state(params):
        fill = 1.0 if "norm" in "".join(map(str, path)) else 0.0
        value = jnp.full(variable.shape, fill)
        for end, new in changes.items():
            if ".".join(map(str, path)).endswith(end):
                value = jnp.broadcast_to(jnp.float32(new), variable.shape)
        variable.set_value(value)
    return build(cfg, params)


def stream(model, tokens, key):
    """The residual stream after the embedding and after each layer, [1 + L, B, T, D]."""
    seen = []
    model.hidden(tokens, key, constrain=lambda x: seen.append(x) or x)
    return np.stack(seen[1:])  # the first is the bare embedding, before its dropout


@pytest.mark.parametrize("parallel", [False, True])
def test_each_dropout_layer_has_its_own_mask(parallel):
    """Embeddings are 1; biases make attention add 4 and the ffn 16: the sums show what was kept."""
    cfg = tiny(dropout=0.5, parallel_layers=parallel, attention={"bias": True}, ffn={"bias": True})
    model = silenced(cfg, {"tok_emb.weight": 1, "attn.out_proj.bias": 4, "ffn.down_proj.bias": 16})
    tokens = tokens_for(cfg, 8, 16)
    x = stream(model, tokens, jax.random.key(0)) / 2  # what is kept is scaled by 1 / (1 - ½)
    added = np.diff(x, axis=0)
    assert set(np.unique(x[0])) == {0, 1}
    assert set(np.unique(added)) == {0, 4, 16, 20}
    masks = [x[0] != 0, *(np.isin(a, sums) for a in added for sums in ([4, 20], [16, 20]))]
    assert_independent(masks)
    # the same key, the same masks; another key, others; no key, none
    np.testing.assert_array_equal(x, stream(model, tokens, jax.random.key(0)) / 2)
    assert_independent([masks[0], stream(model, tokens, jax.random.key(1))[0] != 0])
    np.testing.assert_array_equal(np.diff(stream(model, tokens, None), axis=0), 20)
    np.testing.assert_array_equal(stream(model, tokens, None)[0], 1)


def test_each_layer_drops_its_own_ffn_units():
    cfg = tiny(ffn={"variant": "mlp", "activation": "relu", "dropout": 0.5, "bias": True})
    copies = np.eye(cfg.ffn_dim, cfg.d_model)
    model = silenced(cfg, {"ffn.fc1.bias": 1, "ffn.fc2.kernel": copies})
    added = np.diff(stream(model, tokens_for(cfg, 8, 16), jax.random.key(0)), axis=0)
    assert set(np.unique(added)) == {0, 2}
    assert_independent(list(added != 0))


@pytest.mark.parametrize(
    "variant, unit",
    [("swiglu", 3 * SILU_2), ("geglu", 3 * GELU_2), ("mlp", 6)],
    ids=["swiglu", "geglu", "mlp"],
)
def test_ffns_drop_what_enters_their_last_projection(variant, unit):
    """Hidden units f, f + D and f + 2D add up in one feature, which so counts those left."""
    cfg = tiny(ffn={"variant": variant, "activation": "relu", "dropout": 0.5, "bias": True})
    last = np.eye(cfg.d_model)[np.arange(cfg.ffn_dim) % cfg.d_model]
    hidden = {"gate_proj.bias": 2, "up_proj.bias": 3, "fc1.bias": 6}
    model = silenced(cfg, {**hidden, "down_proj.kernel": last, "fc2.kernel": last})
    added = np.diff(stream(model, tokens_for(cfg, 8, 16), jax.random.key(0)), axis=0)
    left = added / (2 * unit)
    np.testing.assert_allclose(left, left.round(), atol=1e-5)
    assert set(np.unique(left.round())) == {0, 1, 2, 3}


def test_each_layer_drops_its_own_attention_weights():
    """With equal values and equal scores, an output counts the weights that are left of T."""
    cfg = tiny(attention={"dropout": 0.5, "bias": True, "mask_type": "bidirectional"})
    N, H = cfg.attention.num_heads, cfg.attention.head_dim
    model = silenced(cfg, {"v_proj.bias": 1, "out_proj.kernel": np.eye(N * H)})
    added = np.diff(stream(model, tokens_for(cfg, 8, 16), jax.random.key(0)), axis=0)
    left = (added * 16 / 2).reshape(2, -1, N, H)
    np.testing.assert_allclose(left, left.round(), atol=1e-4)
    assert left.mean() == pytest.approx(8, abs=0.2)
    assert np.corrcoef(left[..., 0].reshape(2, -1))[0, 1] == pytest.approx(0, abs=0.15)


def test_attention_dropout_has_one_mask_per_head_and_block():
    """Values that are unit vectors show the weights themselves."""
    T, N = 256, 2
    q = k = jnp.zeros((1, T, N, 2))
    v = jnp.broadcast_to(jnp.eye(T)[None, :, None], (1, T, N, T))
    weights = attend(
        q, k, v, scale=1.0, span=Span(None, None), dropout_rate=0.5, key=jax.random.key(0)
    )
    assert set(np.unique(weights)) == {0, 2 / T}
    blocks = [weights[0, start : start + 128, n] != 0 for start in (0, 128) for n in range(N)]
    assert_independent([np.asarray(block) for block in blocks])
