"""The laws that the JAX model's variants obey, and what can be worked out by hand.

Letters: B batch, T query, S key, N heads, K kv-heads, G = N/K, H head_dim, D model.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import DIMENSIONS, build, lively, lively_params, tiny, tokens_for
from flax import nnx

from light_jax.models.placement import Placement
from light_jax.models.transformer import attend as kernel
from light_jax.models.transformer.attend import attend
from light_jax.models.transformer.positional import (
    Rope,
    alibi_slopes,
    apply_complex_rope,
    apply_rope,
    rotate_half,
)
from light_llm.models.transformer.config import TransformerConfig
from light_llm.models.transformer.mask import Span

WINDOWED = {"mask_type": "sliding_window", "window_size": 3}


def influence(cfg: TransformerConfig, length: int) -> np.ndarray:
    """[t, s]: whether the hidden state at t depends on the token embedding at s, by gradient."""
    parameters = dict(nnx.to_flat_state(lively_params(cfg)))
    embedding_VD = parameters.pop(("tok_emb", "weight")).get_value()
    tokens = jnp.arange(length)[None]  # all different: a row of the embedding is a position

    def mixed_T(embedding_VD):
        whole = {("tok_emb", "weight"): nnx.Param(embedding_VD), **parameters}
        hidden_TD = build(cfg, nnx.from_flat_state(whole.items())).hidden(tokens)[0]
        return hidden_TD @ jnp.arange(1.0, 1 + cfg.d_model)

    jacobian_TVD = jax.jit(jax.jacrev(mixed_T))(embedding_VD)
    return np.asarray(jnp.any(jacobian_TVD[:, :length] != 0, axis=-1))


def differences(length: int) -> np.ndarray:
    """t - s, [T, S]."""
    return np.arange(length)[:, None] - np.arange(length)


@pytest.mark.parametrize("variant", ["gqa", "complex"])
@pytest.mark.parametrize("encoding", ["rope", "alibi"])
@pytest.mark.parametrize(
    "mask, sees",
    [
        ({"mask_type": "causal"}, lambda d: d >= 0),
        ({"mask_type": "bidirectional"}, lambda d: d == d),
        (WINDOWED, lambda d: (d >= 0) & (d <= 3)),  # t - window_size <= s <= t
    ],
    ids=["causal", "bidirectional", "sliding_window"],
)
def test_masks_show_exactly_what_they_say(variant, encoding, mask, sees):
    cfg = tiny(
        num_layers=1,
        attention={"variant": variant, **mask},
        positional={"encoding": encoding},
    )
    np.testing.assert_array_equal(influence(cfg, 10), sees(differences(10)))


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich"])
@pytest.mark.parametrize("parallel", [False, True])
def test_a_window_reaches_as_far_per_layer_and_never_ahead(placement, parallel):
    cfg = tiny(attention=WINDOWED, parallel_layers=parallel, norm={"placement": placement})
    d = differences(10)
    np.testing.assert_array_equal(influence(cfg, 10), (d >= 0) & (d <= 2 * 3))


@pytest.mark.parametrize(
    "pattern, reach",
    [([3, 3], 2 * 3), ([3, 1], 3 + 1), ([2, None], 9), ([None, 2], 9)],  # of two layers
)
def test_each_layer_has_its_window(pattern, reach):
    cfg = tiny(attention={"window_pattern": pattern}, positional={"encoding": "none"})
    d = differences(10)
    np.testing.assert_array_equal(influence(cfg, 10), (d >= 0) & (d <= reach))


def test_a_pattern_of_one_window_is_a_sliding_window():
    params, tokens = lively_params(tiny()), tokens_for(tiny(), 2, 12)
    patterns = [WINDOWED, {"window_pattern": [3]}, {}, {"window_pattern": [None]}]
    logits = [jax.jit(build(tiny(attention=way), params))(tokens) for way in patterns]
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_array_equal(logits[2], logits[3])


def test_a_loop_has_a_body_as_long_as_the_pattern():
    """Whatever the depth: seven layers are two turns of it and a beginning of a third."""

    def matmuls(layers, pattern):
        cfg = tiny(num_layers=layers, attention={"window_pattern": pattern})
        model = build(cfg, lively_params(cfg), placement=Placement(scanned=True))
        return str(jax.make_jaxpr(model.hidden)(tokens_for(cfg, 2, 12))).count("dot_general")

    one = matmuls(6, None)
    assert matmuls(6, [2, 2, None]) == matmuls(9, [2, 2, None]) == 3 * one
    assert matmuls(7, [2, 2, None]) == 4 * one


@pytest.mark.parametrize("encoding", ["rope", "rope/3", "alibi", "sinusoidal", "learned", "nopos"])
def test_the_future_has_no_gradient(encoding):
    cfg = tiny(DIMENSIONS["encoding"][encoding])
    np.testing.assert_array_equal(influence(cfg, 10), differences(10) >= 0)


def assert_equal_but_for_rounding(a, b, eps=1e-5):
    """Within `eps` of the largest number, which is what float32 sums of such numbers hold."""
    np.testing.assert_allclose(a, b, rtol=0, atol=eps * max(1.0, float(jnp.abs(b).max())))


def random_qkv(T: int, N: int, K: int, H: int, v_dim: int) -> list[jax.Array]:
    shapes = [(2, T, N, H), (2, T, K, H), (2, T, K, v_dim)]
    keys = jax.random.split(jax.random.key(T), 3)
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def naive_attention(q_BTNH, k_BSKH, v_BSKH, scale, span, slopes_N):
    """The whole of softmax(scale · q·k - slope · |t - s|) · v at once, keys and values repeated."""
    G = q_BTNH.shape[2] // k_BSKH.shape[2]
    k_BSNH, v_BSNH = jnp.repeat(k_BSKH, G, axis=2), jnp.repeat(v_BSKH, G, axis=2)
    scores_BNTS = scale * jnp.einsum("btnh,bsnh->bnts", q_BTNH, k_BSNH, precision="highest")
    d_TS = differences(q_BTNH.shape[1])
    if slopes_N is not None:
        scores_BNTS -= slopes_N[:, None, None] * np.abs(d_TS)
    seen_TS = d_TS == d_TS
    if span.left is not None:
        seen_TS &= d_TS <= span.left
    if span.right is not None:
        seen_TS &= d_TS >= -span.right
    probs_BNTS = jax.nn.softmax(jnp.where(seen_TS, scores_BNTS, -jnp.inf), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", probs_BNTS, v_BSNH, precision="highest")


SPANS = {
    "causal": Span(None, 0),
    "bidirectional": Span(None, None),
    "window5": Span(5, 0),
    "window128": Span(128, 0),
    "window299": Span(299, 0),
}


@pytest.mark.parametrize(
    "span, heads, alibi",
    [
        *((span, (4, 2), False) for span in SPANS),
        ("causal", (6, 2), True),
        ("bidirectional", (3, 1), True),
        ("window5", (3, 3), True),
    ],
)
def test_blocks_of_queries_are_invisible(span, heads, alibi):
    """At 300 positions, which blocks of 128 do not divide: values and gradients."""
    T, (N, K) = 300, heads
    assert kernel.MIN_BLOCK < T < kernel.MIN_BLOCK * kernel.MAX_BLOCKS
    assert T % kernel.MIN_BLOCK
    check_against_naive(T, N, K, SPANS[span], alibi_slopes(N) if alibi else None)


@pytest.mark.parametrize("T", [1, 128, 129, 1030])  # at 1030 the blocks grow beyond 128
def test_blocks_are_invisible_at_their_edges(T):
    check_against_naive(T, 1, 1, Span(130, 0), None)


def check_against_naive(T, N, K, span, slopes_N):
    qkv = random_qkv(T, N, K, H=6, v_dim=4)
    how = {"scale": 0.4, "span": span, "slopes_N": slopes_N}
    mixture = jax.random.normal(jax.random.key(9), (2, T, N, 4))

    def both(attention, *qkv):  # constants would be folded by XLA's interpreter, which is slow
        out, gradients_of = jax.vjp(lambda *qkv: attention(*qkv, **how), *qkv)
        return out, *gradients_of(mixture)

    run = jax.jit(both, static_argnums=0)
    for ours, naive in zip(run(attend, *qkv), run(naive_attention, *qkv), strict=True):
        assert_equal_but_for_rounding(ours, naive, 2e-5)


@pytest.mark.parametrize("window", [1, 127, 128, 200])
def test_the_window_is_exact_across_blocks(window):
    """By the gradient of the values: t - window_size is the first key in sight."""
    T = 300
    q, k, v = random_qkv(T, 1, 1, 4, 1)

    def out_T(v_S):
        return attend(q[:1], k[:1], v_S[None, :, None, None], scale=1.0, span=Span(window, 0))[
            0, :, 0, 0
        ]

    seen_TS = jax.jit(jax.jacrev(out_T))(v[0, :, 0, 0]) != 0
    for t in (0, 126, 127, 128, 129, 255, 256, 299):
        first = max(0, t - window)
        np.testing.assert_array_equal(np.flatnonzero(seen_TS[t]), np.arange(first, t + 1))


@pytest.mark.parametrize("scaling", [None, 3.0])
def test_rope_scores_depend_on_offsets_alone(scaling):
    cfg = tiny(positional={"rope_base": 100.0, "rope_scaling": scaling})
    geometry = Rope(cfg, nnx.Rngs(0)).geometry
    q, k, q_im, k_im = jax.random.normal(jax.random.key(0), (4, 1, 9, 2, cfg.attention.head_dim))

    def scores(q_shift, k_shift):
        at_q, at_k = geometry(jnp.arange(9) + q_shift), geometry(jnp.arange(9) + k_shift)
        dot = lambda a, b: jnp.einsum("btnh,bsnh->bnts", a, b, precision="highest")  # noqa: E731
        q_parts, k_parts = apply_complex_rope(q, q_im, at_q), apply_complex_rope(k, k_im, at_k)
        return jnp.stack(
            [dot(apply_rope(q, at_q), apply_rope(k, at_k)), sum(map(dot, q_parts, k_parts))]
        )

    np.testing.assert_allclose(scores(0, 0), scores(37, 37), atol=5e-5)
    for kind in (0, 1):
        assert jnp.abs(scores(0, 0) - scores(1, 0))[kind].max() > 0.1


def test_rope_by_hand():
    """Base 100, head_dim 4: frequencies 1 and 1/10; halves (0, 2) and (1, 3) turn together."""
    cfg = tiny(attention={"head_dim": 4}, positional={"rope_base": 100.0, "rope_scaling": 2.0})
    geometry = Rope(cfg, nnx.Rngs(0)).geometry(jnp.array([3]))
    slow, fast = 0.15, 1.5  # position 3 / scaling 2
    np.testing.assert_allclose(geometry.cos_TH, np.cos([[fast, slow, fast, slow]]), rtol=1e-6)
    np.testing.assert_allclose(geometry.sin_TH, np.sin([[fast, slow, fast, slow]]), rtol=1e-6)
    z = (1 + 3j) * np.exp(1j * fast), (2 + 4j) * np.exp(1j * slow)
    turned = apply_rope(jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4), geometry)
    np.testing.assert_allclose(
        turned.ravel(), [z[0].real, z[1].real, z[0].imag, z[1].imag], rtol=1e-6
    )


def test_a_tpu_turns_halves_by_a_matmul_that_is_exact():
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        x = jax.random.normal(jax.random.key(0), (2, 3, 5, 6)).astype(dtype)
        np.testing.assert_array_equal(rotate_half(x, "tpu"), rotate_half(x))


def test_complex_rope_multiplies_by_a_unit_number():
    cfg = tiny(attention={"variant": "complex", "head_dim": 4}, positional={"rope_base": 100.0})
    geometry = Rope(cfg, nnx.Rngs(0)).geometry(jnp.array([3]))
    z_H = np.array([1 + 2j, 3 - 1j, -2 + 1j, 1 - 1j])
    parts = [jnp.float32(part).reshape(1, 1, 1, 4) for part in (z_H.real, z_H.imag)]
    re, im = apply_complex_rope(*parts, geometry)
    turned_H = z_H * np.exp(1j * np.array([3.0, 0.3, 3.0, 0.3]))
    np.testing.assert_allclose(np.ravel(re) + 1j * np.ravel(im), turned_H, rtol=1e-6)


def test_alibi_slopes_by_hand():
    assert alibi_slopes(1).tolist() == [1 / 256]
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    # of 4: 1/4, 1/16, …; then the 1st and 3rd of 8: 1/2, 1/8
    assert alibi_slopes(6).tolist() == [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]
    # of 8; then the 1st, 3rd, 5th and 7th of 16, which are 2^-½, 2^-1, 2^-1½, …
    of_16 = [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    np.testing.assert_allclose(alibi_slopes(12), [2.0**-i for i in range(1, 9)] + of_16, rtol=1e-6)


def test_parallel_layers_leave_post_norms_unused():
    cfg = tiny(parallel_layers=True, norm={"placement": "sandwich"})
    tokens = tokens_for(cfg, 2, 9)
    grad = jax.jit(jax.grad(lambda params: jnp.sum(build(cfg, params)(tokens) ** 2)))
    gradients = grad(lively_params(cfg))
    for layer in gradients["layers"].values():
        for norm in ("post_norm1", "post_norm2"):
            assert not layer[norm]["weight"].get_value().any()
        for norm in ("norm1", "norm2"):
            assert layer[norm]["weight"].get_value().all()


@pytest.mark.parametrize(
    "encoding, rate, pattern", [("rope", 0.3, None), ("alibi", 0.0, [2, None])]
)
def test_gradient_checkpointing_changes_nothing(encoding, rate, pattern):
    """Nor does a loop over layers; of three with a pattern of two, the last is a loop alone."""
    rates = {"dropout": rate, "attention": {"dropout": rate}, "ffn": {"dropout": rate}}
    results = []
    for kind, scanned in ((False, False), (True, False), (False, True), (True, True)):
        attention = {"window_pattern": pattern, "dropout": rate}
        cfg = tiny(rates, positional={"encoding": encoding}, attention=attention, num_layers=3)
        cfg = cfg.model_copy(update={"gradient_checkpointing": kind})
        tokens, key = tokens_for(cfg, 2, 12), jax.random.key(3) if rate else None
        run = functools.partial(build, placement=Placement(scanned=scanned))

        def loss(params, cfg=cfg, tokens=tokens, key=key, run=run):
            return jnp.sum(run(cfg, params).hidden(tokens, key)[..., 0] ** 2)

        results.append(jax.jit(jax.value_and_grad(loss))(lively_params(cfg)))
    for other in results[1:]:
        jax.tree.map(assert_equal_but_for_rounding, results[0], other)


def test_a_loop_over_layers_keeps_matmuls_or_nothing():
    """Matrix multiplications in the loops of a forward and a backward pass, by kind."""

    def matmuls(kind):
        cfg = tiny(gradient_checkpointing=kind)
        tokens, params = tokens_for(cfg, 2, 12), lively_params(cfg)
        model = functools.partial(build, cfg, placement=Placement(scanned=True))
        grad = jax.grad(lambda params: jnp.sum(model(params).hidden(tokens)))
        return str(jax.make_jaxpr(grad)(params)).count("dot_general")

    assert matmuls("matmuls") == matmuls(False)
    # Attention in blocks is computed again in either case, since it is no kernel of its own. XLA
    # drops the last, whose result no gradient needs.
    names = ("q", "k", "v", "out", "gate", "up", "down")
    assert matmuls(True) - matmuls(False) == len(names)


def test_gradient_checkpointing_recomputes_layers():
    """What is kept for the backward pass no longer holds a layer's inner activations."""

    def kept(on):
        cfg = tiny(gradient_checkpointing=on)
        tokens, params = tokens_for(cfg, 2, 12), lively_params(cfg)
        _, backward = jax.vjp(lambda params: build(cfg, params).hidden(tokens), params)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert kept(True) < kept(False) / 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention": {"variant": "complex"}, "norm": {"placement": "sandwich"}},
        {"positional": {"encoding": "alibi"}, "ffn": {"variant": "mlp", "activation": "gelu"}},
        {"norm": {"type": "layernorm", "placement": "post"}, "attention": WINDOWED},
        {"positional": {"encoding": "learned"}, "parallel_layers": True, "tie_embeddings": False},
    ],
    ids=["default", "complex", "alibi", "layernorm", "learned"],
)
def test_16_bits_come_close_to_float32(dtype, changes):
    cfg = tiny(changes)
    tokens = tokens_for(cfg, 4, 16)
    exact, rounded = lively(cfg)(tokens), lively(cfg, dtype)(tokens)
    assert rounded.dtype == exact.dtype == jnp.float32
    relative = jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact)
    assert 1e-5 < relative < 2e-2


def test_alibi_distances_are_exact_in_bfloat16():
    """bfloat16 has 8 bits: a bias computed in it would round distances above 256."""
    T = 600
    q = k = jnp.zeros((1, T, 1, 8), jnp.bfloat16)
    v = jnp.ones((1, T, 1, 1), jnp.bfloat16) * (jnp.arange(T)[:, None, None] >= 300)
    out_T = attend(q, k, v, scale=1.0, span=Span(None, 0), slopes_N=np.float32([1 / 256]))
    weight_S = np.exp(-np.arange(T) / 256)  # of the key at distance d
    beyond = [weight_S[: max(0, t - 299)].sum() / weight_S[: t + 1].sum() for t in range(T)]
    np.testing.assert_allclose(np.float32(out_T).ravel(), beyond, rtol=1e-2)


def test_sequences_beyond_max_seq_len_are_refused():
    model = lively(tiny(max_seq_len=8))
    assert model(tokens_for(model.cfg, 1, 8)).shape == (1, 8, 31)
    with pytest.raises(ValueError, match="9 tokens exceed max_seq_len=8"):
        model(tokens_for(model.cfg, 1, 9))
