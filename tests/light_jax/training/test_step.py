"""Laws of the training step, on the step itself."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_runs import TINY, merged

from conversion import to_torch
from conversion.mapping import table
from light_jax.config import TrainingConfig
from light_jax.parallel.sharding import make_mesh, tables_of
from light_jax.sections import MeshConfig, OptimizerConfig
from light_jax.training.loss import How, loss_sums
from light_jax.training.optimizer import clip_scale, learning_rate, make_optimizer
from light_jax.training.step import (
    init_params,
    init_state,
    make_eval_step,
    make_train_step,
    params_of,
    summed_loss,
)
from light_jax.training.verdict import INITIAL_LOSS_SCALE, LOSS_SCALE_GROWTH_INTERVAL, MAX_SKIPS


def config(**changes) -> TrainingConfig:
    return TrainingConfig(**merged(TINY, changes))


def tokens(cfg: TrainingConfig, seed: int = 0) -> jax.Array:
    shape = (cfg.gradient_accumulation_steps, cfg.batch_size, cfg.seq_len + 1)
    return jax.random.randint(jax.random.key(seed), shape, 0, cfg.model.vocab_size, jnp.int32)


def setup(**changes):
    """A config, its step, its initial state and its mesh: made once, since no step donates."""
    return made(config(**changes).model_dump_json())


@functools.cache
def made(text: str):
    cfg = TrainingConfig.model_validate_json(text)
    mesh = make_mesh(cfg.mesh)
    step = jax.jit(make_train_step(cfg, mesh))
    return cfg, step, init_state(cfg, init_params(cfg)), mesh


def leaves(tree) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def largest_difference(a, b) -> float:
    return max(np.abs(x - y).max() for x, y in zip(leaves(a), leaves(b), strict=True))


def test_k_micro_batches_equal_one_batch():
    cfg, step, state, _ = setup()
    batch = tokens(cfg)
    one, one_metrics = step(state, batch, jnp.float32(1e-2))
    _, step4, _, _ = setup(batch_size=2, gradient_accumulation_steps=4)
    four, four_metrics = step4(state, batch.reshape(4, 2, -1), jnp.float32(1e-2))
    assert four_metrics.loss == pytest.approx(float(one_metrics.loss), abs=1e-6)
    assert four_metrics.grad_norm == pytest.approx(float(one_metrics.grad_norm), rel=1e-5)
    assert largest_difference(one.opt_state, four.opt_state) < 1e-6


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_optimizers_are_those_of_torch(kind):
    """Five updates of two tensors, with decay on the matrix alone."""
    torch = pytest.importorskip("torch")
    cfg = OptimizerConfig(type=kind, weight_decay=0.1, beta1=0.8, beta2=0.9, eps=1e-6)
    rng = np.random.default_rng(0)
    start = {"matrix": rng.normal(size=(3, 4)), "vector": rng.normal(size=4)}
    params = {name: jnp.float32(value) for name, value in start.items()}
    ours, opt_state = make_optimizer(cfg), make_optimizer(cfg).init(params)
    theirs = {k: torch.nn.Parameter(torch.tensor(v, dtype=torch.float32)) for k, v in start.items()}
    groups = [
        {"params": [theirs["matrix"]], "weight_decay": 0.1},
        {"params": [theirs["vector"]], "weight_decay": 0.0},
    ]
    adam = {"betas": (0.8, 0.9), "eps": 1e-6}
    optimizer = {
        "adamw": lambda: torch.optim.AdamW(groups, lr=0.05, **adam),
        "adam": lambda: torch.optim.Adam(groups, lr=0.05, **adam),
        "sgd": lambda: torch.optim.SGD(groups, lr=0.05, momentum=0.8),
    }[kind]()
    for _ in range(5):
        grads = {
            name: rng.normal(size=value.shape).astype(np.float32) for name, value in start.items()
        }
        direction, opt_state = ours.update(grads, opt_state, params)
        params = jax.tree.map(lambda p, d: p - 0.05 * d, params, direction)
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(grads[name])
        optimizer.step()
    for name, parameter in theirs.items():
        np.testing.assert_allclose(params[name], parameter.detach().numpy(), atol=2e-6)


def test_clipping_is_torchs():
    torch = pytest.importorskip("torch")
    for norm, max_norm in [(0.5, 1.0), (3.0, 1.0), (1.0, 1.0), (0.0, 1.0)]:
        parameter = torch.nn.Parameter(torch.zeros(1))
        parameter.grad = torch.tensor([norm])
        torch.nn.utils.clip_grad_norm_([parameter], max_norm)
        ours = norm * float(clip_scale(jnp.float32(norm), max_norm))
        assert ours == pytest.approx(float(parameter.grad), abs=1e-7)
    assert clip_scale(jnp.float32(1e9), 0.0) == 1.0  # off


def test_schedules_by_hand():
    def rates(kind, steps, **changes):
        cfg = config(num_steps=10, optimizer={"lr": 1.0}, scheduler={"type": kind, **changes})
        return [learning_rate(cfg, step) for step in steps]

    assert rates("constant", [0, 1, 2, 9], warmup_steps=2) == [0.0, 0.5, 1.0, 1.0]
    assert rates("linear", [2, 6, 10, 99], warmup_steps=2, min_lr_ratio=0.2) == [1, 0.6, 0.2, 0.2]
    cosine = rates("cosine", [2, 6, 10, 99], warmup_steps=2, min_lr_ratio=0.2)
    assert cosine == pytest.approx([1.0, 0.6, 0.2, 0.2])
    # without warmup_steps, wsd warms up over a tenth; the last tenth decays
    wsd = config(
        num_steps=100, optimizer={"lr": 1.0}, scheduler={"type": "wsd", "warmup_steps": None}
    )
    assert wsd.scheduler.warmup_steps == 10
    steps = [5, 10, 50, 90, 95, 100]
    assert [learning_rate(wsd, n) for n in steps] == pytest.approx([0.5, 1, 1, 1, 0.55, 0.1])


@pytest.mark.parametrize(("z_loss", "cap"), [(0.0, None), (1e-2, None), (1e-2, 3.0)])
def test_loss_is_its_formula_for_any_chunks_and_padding(z_loss, cap):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, head = jax.random.normal(keys[0], (4, 37, 16)), jax.random.normal(keys[1], (53, 16))
    targets = jax.random.randint(keys[2], (4, 37), 0, 53)
    weights = jax.random.uniform(keys[3], (4, 37))

    def plain(hidden, head):
        logits = jnp.einsum("btd,vd->btv", hidden, head, precision="highest")
        logits = logits if cap is None else cap * jnp.tanh(logits / cap)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        losses += z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2
        return 3 * jnp.sum(losses * weights)

    expected = jax.jit(jax.value_and_grad(plain, (0, 1)))(hidden, head)
    tables = tables_of(setup()[0].model, make_mesh(MeshConfig()))
    for how in (How(jnp.float32, tables, rows, z_loss, cap) for rows in (1, 128)):

        def ours(hidden, head, how=how):
            return 3 * loss_sums(hidden, head, targets, weights, how).total

        found = jax.jit(jax.value_and_grad(ours, (0, 1)))(hidden, head)
        assert float(jax.jit(ours)(hidden, head)) == pytest.approx(float(expected[0]), rel=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5),
            found,
            expected,
        )


def test_logits_never_exist_whole():
    """The largest array of the compiled training and evaluation steps is smaller than they."""
    cfg, _, state, mesh = setup(batch_size=16, model={"vocab_size": 1000})
    whole = cfg.batch_size * cfg.seq_len * cfg.model.vocab_size
    params, batch = state.params, tokens(cfg)
    train = jax.jit(make_train_step(cfg, mesh)).lower(state, batch, jnp.float32(0))
    evaluate = jax.jit(make_eval_step(cfg, mesh)).lower(params, batch[0], jnp.ones(cfg.batch_size))
    for step in (train, evaluate):
        shapes = re.findall(r"[a-z]+\d+\[([\d,]+)\]", step.compile().as_text())
        largest = max(math.prod(map(int, shape.split(","))) for shape in shapes)
        assert cfg.model.vocab_size * cfg.model.d_model <= largest < whole / 2


def equations(closed):
    """Every equation of a jaxpr, those of inner jaxprs included."""
    for eqn in getattr(closed, "jaxpr", closed).eqns:
        yield eqn
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from equations(inner)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dots_take_16_bits_and_the_rest_is_float32(dtype):
    """On the traced step: what multiplies matrices is 16-bit; norms, softmax, loss are float32."""
    cfg, _, state, mesh = setup(dtype=dtype)
    eqns = list(equations(jax.make_jaxpr(make_train_step(cfg, mesh))(state, tokens(cfg), 0.1)))
    dots = [eqn for eqn in eqns if eqn.primitive.name == "dot_general"]
    assert len(dots) > 30
    assert {str(v.aval.dtype) for eqn in dots for v in eqn.invars} == {dtype}
    # scores and logits come out of their dots in float32, before any softmax
    batch, seq, vocab = cfg.batch_size, cfg.seq_len, cfg.model.vocab_size
    evaluate = make_eval_step(cfg, mesh)
    forward = equations(jax.make_jaxpr(evaluate)(state.params, tokens(cfg)[0], jnp.ones(batch)))
    products = [eqn.outvars[0].aval for eqn in forward if eqn.primitive.name == "dot_general"]
    scores = [aval for aval in products if aval.shape[-2:] == (4 * seq, seq)]
    logits = [aval for aval in products if aval.shape[-1] == vocab]
    assert (len(scores), len(logits)) == (cfg.model.num_layers, 1)
    assert {str(aval.dtype) for aval in scores + logits} == {"float32"}
    for name in ("exp", "rsqrt", "reduce_max", "log", "cos"):
        found = [eqn for eqn in eqns if eqn.primitive.name == name]
        assert found, name
        assert {str(v.aval.dtype) for eqn in found for v in eqn.outvars} == {"float32"}, name
    # the residual stream: every sum of two [B, T, D] arrays in the forward pass
    sums = [
        e for e in eqns if e.primitive.name == "add" and e.outvars[0].aval.shape == (batch, seq, 32)
    ]
    assert {str(e.outvars[0].aval.dtype) for e in sums} == {"float32"}


def test_float32_matmuls_ask_for_the_highest_precision():
    cfg, _, state, mesh = setup(dtype="float32")
    eqns = equations(jax.make_jaxpr(make_train_step(cfg, mesh))(state, tokens(cfg), 0.1))
    precisions = {eqn.params["precision"] for eqn in eqns if eqn.primitive.name == "dot_general"}
    highest = jax.lax.Precision.HIGHEST
    assert precisions == {(highest, highest)}


def test_a_bad_step_freezes_the_state_for_good():
    cfg, step, state, _ = setup()
    good, _ = step(state, tokens(cfg), jnp.float32(1e-3))
    poisoned = jax.tree.map(lambda p: p.at[(0,) * p.ndim].set(jnp.nan), good.params)
    bad, metrics = step(dataclasses.replace(good, params=poisoned), tokens(cfg), jnp.float32(1e-3))
    assert metrics.bad_step == bad.bad_step == 1
    assert bad.step == 1
    assert largest_difference(bad.opt_state, good.opt_state) == 0
    healed = dataclasses.replace(bad, params=good.params)
    after, metrics = step(healed, tokens(cfg), jnp.float32(1e-3))
    assert metrics.bad_step == 1
    assert largest_difference(after.params, good.params) == 0
    assert after.step == 1


def test_loss_scale_halves_on_overflow_and_skips_the_update_alone():
    cfg, step, state, _ = setup(dtype="float16", ema_decay=0.5)
    huge = dataclasses.replace(state.loss_scale, scale=jnp.float32(2.0**40))
    state = dataclasses.replace(state, loss_scale=huge)
    after, metrics = step(state, tokens(cfg), jnp.float32(1e-3))
    assert metrics.skipped
    assert np.isfinite(metrics.loss)
    assert not np.isfinite(metrics.grad_norm)
    assert after.step == 1
    assert after.bad_step == -1
    assert after.loss_scale.scale == 2.0**39
    assert after.loss_scale.skipped_steps == 1
    assert largest_difference(after.params, state.params) == 0
    assert largest_difference(after.average, state.average) == 0
    assert largest_difference(after.opt_state, state.opt_state) == 0  # Adam's count too
    fine = dataclasses.replace(after.loss_scale, scale=jnp.float32(INITIAL_LOSS_SCALE))
    after, metrics = step(
        dataclasses.replace(after, loss_scale=fine), tokens(cfg), jnp.float32(1e-3)
    )
    assert not metrics.skipped
    assert after.loss_scale.skipped_steps == 0
    assert after.opt_state[0].count == 1
    moved, followed = (largest_difference(x, state.params) for x in (after.params, after.average))
    assert 0 < moved == pytest.approx(2 * followed, rel=1e-3)


def test_loss_scale_doubles_after_enough_finite_steps_and_never_falls_below_one():
    cfg, step, state, _ = setup(dtype="float16")
    almost = dataclasses.replace(
        state.loss_scale, finite_steps=jnp.int32(LOSS_SCALE_GROWTH_INTERVAL - 1)
    )
    after, _ = step(dataclasses.replace(state, loss_scale=almost), tokens(cfg), jnp.float32(0))
    assert after.loss_scale.scale == 2 * INITIAL_LOSS_SCALE
    assert after.loss_scale.finite_steps == 0


def test_overflow_without_end_stops():
    cfg, step, state, _ = setup(dtype="float16")
    hopeless = dataclasses.replace(
        state.loss_scale, scale=jnp.float32(2.0**60), skipped_steps=jnp.int32(MAX_SKIPS - 1)
    )
    _, metrics = step(dataclasses.replace(state, loss_scale=hopeless), tokens(cfg), jnp.float32(0))
    assert metrics.bad_step == 0


def test_bf16_weights_follow_their_float32_masters():
    cfg, step, state, _ = setup(dtype="bfloat16", bf16_model_weights=True)
    before = leaves(state.master)
    for _ in range(3):
        state, _ = step(state, tokens(cfg), jnp.float32(1e-5))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.master)} == {jnp.dtype("float32")}
    rounded = jax.tree.map(lambda w: w.astype(jnp.bfloat16), state.master)
    assert largest_difference(rounded, state.params) == 0
    # updates too small for bfloat16 still add up
    moved = [np.abs(a - b).max() for a, b in zip(before, leaves(state.master), strict=True)]
    assert min(moved) > 0


def test_initial_weights_have_the_stated_deviations_and_depend_on_the_seed_alone():
    cfg = config(
        model={"d_model": 256, "num_layers": 8, "vocab_size": 1000, "attention": {"bias": True}}
    )
    weights = to_torch(init_params(cfg), cfg.model)
    for entry in table(cfg.model):
        value = weights[entry.key]
        if "norm" in entry.key:
            assert (value == 1).all()
        elif entry.key.endswith("bias"):
            assert (value == 0).all()
        else:
            residual = any(name in entry.key for name in ("out_proj", "down_proj"))
            std = 0.02 / 4 if residual else 0.02
            assert value.std() == pytest.approx(std, rel=0.03), entry.key
    again = to_torch(init_params(cfg), cfg.model)
    assert all((weights[key] == again[key]).all() for key in weights)
    other = to_torch(init_params(cfg.model_copy(update={"seed": 1})), cfg.model)
    assert (other["tok_emb.weight"] != weights["tok_emb.weight"]).all()


@pytest.mark.parametrize("bf16_weights", [True, False])
def test_sums_over_tokens_are_float32(bf16_weights):
    """One token in every place: its gradient is a sum of thousands, which 16 bits would cut off."""

    def grads(**changes):
        model = {"attention": {"bias": True}, "tie_embeddings": False}
        cfg = config(batch_size=256, model=model, **changes)
        params = params_of(cfg, init_params(cfg))[0]
        batch = jnp.full((cfg.batch_size, cfg.seq_len + 1), 7, jnp.int32)
        ones = jnp.ones((cfg.batch_size, cfg.seq_len))
        loss = summed_loss(cfg, make_mesh(cfg.mesh))
        grad = jax.jit(jax.grad(lambda params: loss(params, batch, ones)))
        return to_torch(grad(params), cfg.model)

    exact = grads(dtype="float32")
    ours = grads(dtype="bfloat16", bf16_model_weights=bf16_weights)
    for key in ("tok_emb.weight", "layers.0.attn.v_proj.bias", "layers.1.attn.out_proj.bias"):
        error = np.abs(ours[key].astype(np.float32) - exact[key]).max()
        assert error < 0.03 * np.abs(exact[key]).max(), key
