"""One training step: loss and gradients over micro-batches, clip, update. Pure, jitted, donated.

Donated: XLA writes the state after a step into the buffers of the state before it, so that there is
one state on the device and not two. The old one cannot be read afterwards, even where a step
changes nothing. So the step itself selects what it must not change; the loop keeps no copy.

Letters: A micro-batches, B batch, S = T + 1 tokens of a window, D model, V vocab.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from light_jax.config import TrainingConfig
from light_jax.models.transformer.model import Transformer
from light_jax.parallel.sharding import batch_sharding, placement_of, state_shardings, tables_of
from light_jax.state import (
    Losses,
    LossScale,
    Params,
    StepMetrics,
    TrainState,
    params_of,
    to_bfloat16,
)
from light_jax.training.loss import How, Sums, loss_sums
from light_jax.training.optimizer import clip_scale, make_optimizer
from light_jax.training.verdict import INITIAL_LOSS_SCALE, Verdict, judge, next_loss_scale
from light_llm.models.transformer.config import TransformerConfig

DROPOUT_STREAM = 0x64726F70  # keeps the masks' keys apart from those of the initial weights


def init_params(cfg: TrainingConfig) -> Params:
    """Fresh float32 parameters, a function of only the seed and the config."""
    return nnx.split(Transformer(cfg.model, rngs=nnx.Rngs(cfg.seed)), nnx.Param)[1]


_shapes: dict[str, Params] = {}  # by the config of the model: tracing it takes a tenth of a second


def weights_shapes(model: TransformerConfig) -> Params:
    """The shapes and dtypes of a model's parameters, float32. Nothing is computed."""
    key = model.model_dump_json()
    if key not in _shapes:
        make = functools.partial(Transformer, model)
        _shapes[key] = jax.eval_shape(lambda: nnx.split(make(rngs=nnx.Rngs(0)), nnx.Param)[1])
    return _shapes[key]


def state_shapes(cfg: TrainingConfig) -> TrainState:
    """The shapes and dtypes of a run's state. Nothing is computed."""
    return jax.eval_shape(lambda weights: init_state(cfg, weights), weights_shapes(cfg.model))


def init_state(cfg: TrainingConfig, weights: Params) -> TrainState:
    """The state before the first step, from float32 weights."""
    zero = jnp.zeros((), jnp.int32)
    params, master = params_of(cfg, weights)
    return TrainState(
        step=zero,
        params=params,
        master=master,
        average=None if cfg.ema_decay is None else jax.tree.map(jnp.copy, weights),
        opt_state=make_optimizer(cfg.optimizer).init(weights),
        loss_scale=(
            LossScale(jnp.float32(INITIAL_LOSS_SCALE), zero, zero)
            if cfg.dtype == "float16"
            else None
        ),
        loss_sum=jnp.zeros((), jnp.float32),
        loss_count=zero,
        bad_step=zero - 1,
    )


def dropout_key(cfg: TrainingConfig, step: jax.Array) -> jax.Array | None:
    """The key that the masks of step n derive from; None where there is no dropout."""
    model = cfg.model
    if max(model.dropout, model.attention.dropout, model.ffn.dropout) == 0:
        return None
    run_key = jax.random.fold_in(jax.random.key(cfg.seed), DROPOUT_STREAM)
    return jax.random.fold_in(run_key, step)


Watch = Callable[[jax.Array], jax.Array]


def summed_loss(cfg: TrainingConfig, mesh: Mesh) -> Callable[..., jax.Array]:
    """(params, tokens_BS, weights_BT, key) -> the weighted sum of the tokens' cross-entropies,
    float32."""
    sums = _watched_sums(cfg, mesh, None, z_loss=0.0)
    return lambda *args: sums(*args)[0].total


def _watched_sums(
    cfg: TrainingConfig, mesh: Mesh, watch: Watch | None, z_loss: float
) -> Callable[..., tuple[Sums, list[jax.Array]]]:
    """(params, tokens_BS, weights_BT, key) -> (sums of the losses of tokens, what `watch` returned
    for each activation)."""
    placement = placement_of(cfg.model, mesh)
    if watch is not None:  # what a loop computes cannot be seen from outside
        placement = dataclasses.replace(placement, scanned=False)
    abstract = nnx.eval_shape(
        lambda: Transformer(
            cfg.model, dtype=jnp.dtype(cfg.dtype), placement=placement, rngs=nnx.Rngs(0)
        )
    )
    graphdef, tables = nnx.graphdef(abstract), tables_of(cfg.model, mesh)
    by_rows = batch_sharding(mesh, 0)
    # The head's rows in full tiles: 50257 columns would leave a GPU's or TPU's matmul units idle.
    row_multiple = 1 if mesh.devices.flat[0].platform == "cpu" else 128
    how = How(jnp.dtype(cfg.dtype), tables, row_multiple, z_loss, cfg.model.logit_softcap)

    def sums(
        params: Params, tokens_BS: jax.Array, weights_BT: jax.Array, key: jax.Array | None = None
    ) -> tuple[Sums, list[jax.Array]]:
        model = nnx.merge(graphdef, params)
        watched = []  # a new one in each call: the function stays pure

        def constrain(x_BTD: jax.Array) -> jax.Array:
            x_BTD = jax.lax.with_sharding_constraint(x_BTD, by_rows)
            if watch is not None:
                watched.append(watch(x_BTD))
            return x_BTD

        hidden_BTD = model.hidden(tokens_BS[:, :-1], key, constrain)
        return loss_sums(hidden_BTD, model.head_VD, tokens_BS[:, 1:], weights_BT, how), watched

    return sums


def micro_batch_grads(
    cfg: TrainingConfig, mesh: Mesh, watch: Watch | None = None
) -> Callable[..., tuple[Losses, Params, list[jax.Array]]]:
    """(state, a, tokens_BS) -> (losses, gradients, watched) of the step's micro-batch number a.

    The gradients are those of the losses' sum, float32 and still times `state.scale`.

    Args:
        watch: is given the token embeddings, and the residual stream [B, T, D] before and after
            each layer; `watched` lists what it returned, in that order.
    """
    sums = _watched_sums(cfg, mesh, watch, cfg.z_loss or 0.0)

    def scaled_loss(
        params: Params, tokens_BS: jax.Array, key: jax.Array | None, scale: jax.Array
    ) -> tuple[jax.Array, tuple[Losses, list[jax.Array]]]:
        ones_BT = jnp.ones((tokens_BS.shape[0], tokens_BS.shape[1] - 1), jnp.float32)
        of_batch, watched = sums(params, tokens_BS, ones_BT, key)
        mean: Sums = jax.tree.map(lambda x: x / ones_BT.size, of_batch)
        return mean.total * scale, (Losses(mean.cross_entropy, mean.z), watched)

    def grads_of(
        state: TrainState, a: jax.Array, tokens_BS: jax.Array
    ) -> tuple[Losses, Params, list[jax.Array]]:
        step_key = dropout_key(cfg, state.step)
        key = None if step_key is None else jax.random.fold_in(step_key, a)
        grad = jax.grad(scaled_loss, has_aux=True)
        grads, (losses, watched) = grad(state.params, tokens_BS, key, state.scale)
        return losses, jax.tree.map(lambda g: g.astype(jnp.float32), grads), watched

    return grads_of


def make_train_step(
    cfg: TrainingConfig, mesh: Mesh
) -> Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, StepMetrics]]:
    """(state, tokens_ABS int32, learning rate) -> (state after the update, metrics)."""
    grads_of = micro_batch_grads(cfg, mesh)
    stored = functools.partial(state_shardings, cfg=cfg.model, mesh=mesh)
    optimizer = make_optimizer(cfg.optimizer, stored if mesh.size > 1 else None)

    def train_step(
        state: TrainState, tokens_ABS: jax.Array, lr: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        losses, grads = _mean_grads(grads_of, state, tokens_ABS, has_z_loss=bool(cfg.z_loss))
        grads = jax.tree.map(lambda g: g / state.scale, grads)
        norm = optax.tree.norm(grads)
        clip = clip_scale(norm, cfg.optimizer.grad_clip)
        grads = jax.tree.map(lambda g: g * clip, grads)
        direction, opt_state = optimizer.update(grads, state.opt_state, state.weights)
        weights = jax.tree.map(lambda w, d: w - lr * d, state.weights, direction)

        loss = losses.cross_entropy
        verdict = judge(state, loss, norm)
        mean_loss = (state.loss_sum + loss) / (state.loss_count + 1)
        metrics = StepMetrics(
            loss, mean_loss, norm, state.scale, verdict.skipped, verdict.bad_step, losses.z
        )
        average = averaged(state.average, weights, cfg.ema_decay)
        after = _next_state(state, verdict, weights, average, opt_state, loss, cfg.log_every)
        return after, metrics

    return train_step


def averaged(average: Params | None, weights: Params, decay: float | None) -> Params | None:
    """decay · average + (1 - decay) · weights, as torch.optim.swa_utils computes it."""
    if average is None or decay is None:
        return None
    return jax.tree.map(lambda a, w: a + (1 - decay) * (w - a), average, weights)


def _mean_grads(
    grads_of: Callable[..., tuple[Losses, Params, list[jax.Array]]],
    state: TrainState,
    tokens_ABS: jax.Array,
    *,
    has_z_loss: bool,
) -> tuple[Losses, Params]:
    """The losses and the gradients, float32 and still scaled, each a mean over micro-batches."""
    A = tokens_ABS.shape[0]
    if A == 1:  # no sum: it would be a second set of gradients, beside those of the micro-batch
        return grads_of(state, jnp.int32(0), tokens_ABS[0])[:2]

    def add(total: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, grads_of(state, *inputs)[:2]), None

    zero = jnp.float32(0)
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), state.params)
    start = (Losses(zero, zero if has_z_loss else None), zeros)
    total, _ = jax.lax.scan(add, start, (jnp.arange(A), tokens_ABS))
    losses, grads = jax.tree.map(lambda x: x / A, total)
    return losses, grads


def _next_state(
    state: TrainState,
    verdict: Verdict,
    weights: Params,
    average: Params | None,
    opt_state: Any,
    loss: jax.Array,
    log_every: int,
) -> TrainState:
    """The state after the step. A bad step changes nothing, and neither does any later step.

    The host learns of it a step late, and still finds the weights that the bad step began with.
    """
    weights = _select(verdict.update, weights, state.weights)
    logged = (state.step + 1) % log_every == 0
    step, loss_scale, loss_sum, loss_count = _select(
        verdict.counts,
        (
            state.step + 1,
            next_loss_scale(state.loss_scale, verdict.finite),
            jnp.where(logged, 0.0, state.loss_sum + loss),
            jnp.where(logged, 0, state.loss_count + 1),
        ),
        (state.step, state.loss_scale, state.loss_sum, state.loss_count),
    )
    return TrainState(
        step=step,
        params=weights if state.master is None else to_bfloat16(weights),
        master=None if state.master is None else weights,
        average=_select(verdict.update, average, state.average),
        opt_state=_select(verdict.update, opt_state, state.opt_state),
        loss_scale=loss_scale,
        loss_sum=loss_sum,
        loss_count=loss_count,
        bad_step=verdict.bad_step,
    )


def make_eval_step(cfg: TrainingConfig, mesh: Mesh) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(params, tokens_BS, mask_B) -> (summed loss, number of tokens) of the rows in the mask."""
    loss_sum = summed_loss(cfg, mesh)

    def eval_step(
        params: Params, tokens_BS: jax.Array, mask_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        weights_BT = jnp.broadcast_to(
            mask_B.astype(jnp.float32)[:, None], (tokens_BS.shape[0], tokens_BS.shape[1] - 1)
        )
        return loss_sum(params, tokens_BS, weights_BT), jnp.sum(weights_BT)

    return eval_step


def _select(condition: jax.Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
