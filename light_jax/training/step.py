"""One training step: loss and gradients over micro-batches, clip, update. Pure, jitted, donated.

Letters: A micro-batches, B batch, S = T + 1 tokens of a window, D model, V vocab.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from light_jax.config import TrainingConfig
from light_jax.models.transformer.model import Transformer
from light_jax.parallel.sharding import batch_sharding, batch_shards, gather_rows, state_shardings
from light_jax.state import LossScale, Params, StepMetrics, TrainState, params_of, to_bfloat16
from light_jax.training.loss import cross_entropy_sum
from light_jax.training.optimizer import clip_scale, make_optimizer

INITIAL_LOSS_SCALE = 2.0**16
LOSS_SCALE_GROWTH_INTERVAL = 2000
DROPOUT_STREAM = 0x64726F70  # keeps the masks' keys apart from those of the initial weights
MAX_SKIPS = 50  # float16 overflows in a row that end the run


def init_params(cfg: TrainingConfig) -> Params:
    """Fresh float32 parameters: a function of the seed and the config alone."""
    return nnx.split(Transformer(cfg.model, rngs=nnx.Rngs(cfg.seed)), nnx.Param)[1]


def init_state(cfg: TrainingConfig, weights: Params) -> TrainState:
    """The state before the first step, from float32 weights."""
    zero = jnp.zeros((), jnp.int32)
    params, master = params_of(cfg, weights)
    return TrainState(
        step=zero,
        params=params,
        master=master,
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


def summed_loss(
    cfg: TrainingConfig, mesh: Mesh, watch: Callable[[jax.Array], jax.Array] = lambda x_BTD: x_BTD
) -> Callable[..., jax.Array]:
    """(params, tokens_BS, weights_BT, key) -> the weighted sum of the tokens' losses, float32.

    Args:
        watch: is given the token embeddings, and the residual stream before and after each layer.
    """
    abstract = nnx.eval_shape(
        lambda: Transformer(cfg.model, dtype=jnp.dtype(cfg.dtype), rngs=nnx.Rngs(0))
    )
    graphdef, abstract_params = nnx.split(abstract)
    shardings = state_shardings(abstract_params, cfg.model, mesh)
    by_rows = batch_sharding(mesh, 0)
    # The head's rows in full tiles: 50257 columns would leave a GPU's or TPU's matmul units idle.
    row_multiple = 1 if mesh.devices.flat[0].platform == "cpu" else 128

    def loss_sum(
        params: Params, tokens_BS: jax.Array, weights_BT: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        model = nnx.merge(graphdef, gather_rows(params, shardings, mesh))
        hidden_BTD = model.hidden(
            tokens_BS[:, :-1], key, lambda x: watch(jax.lax.with_sharding_constraint(x, by_rows))
        )
        return cross_entropy_sum(
            hidden_BTD,
            model.head_VD,
            tokens_BS[:, 1:],
            weights_BT,
            jnp.dtype(cfg.dtype),
            batch_shards(mesh),
            row_multiple,
        )

    return loss_sum


def make_train_step(
    cfg: TrainingConfig, mesh: Mesh
) -> Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, StepMetrics]]:
    """(state, tokens_ABS int32, learning rate) -> (state after the update, metrics)."""
    loss_sum = summed_loss(cfg, mesh)
    optimizer = make_optimizer(cfg.optimizer)

    def scaled_loss(
        params: Params, tokens_BS: jax.Array, key: jax.Array | None, scale: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        ones_BT = jnp.ones((tokens_BS.shape[0], tokens_BS.shape[1] - 1), jnp.float32)
        loss = loss_sum(params, tokens_BS, ones_BT, key) / ones_BT.size
        return loss * scale, loss

    def loss_and_grads(
        params: Params, tokens_ABS: jax.Array, step_key: jax.Array | None, scale: jax.Array
    ) -> tuple[jax.Array, Params]:
        """Mean loss and the sum of the scaled gradients over micro-batches, float32."""

        def micro_batch(a: jax.Array, tokens_BS: jax.Array) -> tuple[jax.Array, Params]:
            key = None if step_key is None else jax.random.fold_in(step_key, a)
            grad = jax.grad(scaled_loss, has_aux=True)
            grads, loss = grad(params, tokens_BS, key, scale)
            return loss, jax.tree.map(lambda g: g.astype(jnp.float32), grads)

        A = tokens_ABS.shape[0]
        if A == 1:  # saves a second set of gradients
            return micro_batch(jnp.int32(0), tokens_ABS[0])

        def add(total: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, micro_batch(*inputs)), None

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        total, _ = jax.lax.scan(add, (jnp.float32(0), zeros), (jnp.arange(A), tokens_ABS))
        loss, grads = total
        return loss / A, jax.tree.map(lambda g: g / A, grads)

    def train_step(
        state: TrainState, tokens_ABS: jax.Array, lr: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        step_key = dropout_key(cfg, state.step)
        scale = jnp.float32(1) if state.loss_scale is None else state.loss_scale.scale
        loss, grads = loss_and_grads(state.params, tokens_ABS, step_key, scale)
        grads = jax.tree.map(lambda g: g / scale, grads)
        norm = optax.tree.norm(grads)
        clip = clip_scale(norm, cfg.optimizer.grad_clip)
        grads = jax.tree.map(lambda g: g * clip, grads)

        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        skipped = jnp.isfinite(loss) & ~jnp.isfinite(norm) & (state.loss_scale is not None)
        loss_scale = _next_loss_scale(state.loss_scale, finite)
        hopeless = False if loss_scale is None else loss_scale.skipped_steps >= MAX_SKIPS
        good = (state.bad_step < 0) & (finite | skipped) & ~jnp.asarray(hopeless)
        bad_step = jnp.where(good | (state.bad_step >= 0), state.bad_step, state.step)

        direction, opt_state = optimizer.update(grads, state.opt_state, state.weights)
        weights = jax.tree.map(lambda w, d: w - lr * d, state.weights, direction)
        update = good & finite
        weights = _select(update, weights, state.weights)
        mean_loss = (state.loss_sum + loss) / (state.loss_count + 1)
        logged = (state.step + 1) % cfg.log_every == 0
        after = TrainState(
            step=state.step + 1,
            params=weights if state.master is None else to_bfloat16(weights),
            master=None if state.master is None else weights,
            opt_state=_select(update, opt_state, state.opt_state),
            loss_scale=loss_scale,
            loss_sum=jnp.where(logged, 0.0, state.loss_sum + loss),
            loss_count=jnp.where(logged, 0, state.loss_count + 1),
            bad_step=bad_step,
        )
        # Once a step was bad, nothing moves any more: the host learns of it a step late.
        frozen = dataclasses.replace(
            state,
            params=after.params,
            master=after.master,
            opt_state=after.opt_state,
            bad_step=bad_step,
        )
        metrics = StepMetrics(loss, mean_loss, norm, scale, skipped, bad_step)
        return _select(good, after, frozen), metrics

    return train_step


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


def _next_loss_scale(loss_scale: LossScale | None, finite: jax.Array) -> LossScale | None:
    if loss_scale is None:
        return None
    finite_steps = jnp.where(finite, loss_scale.finite_steps + 1, 0)
    grown = finite_steps == LOSS_SCALE_GROWTH_INTERVAL
    scale = jnp.where(grown, loss_scale.scale * 2, loss_scale.scale)
    return LossScale(
        scale=jnp.where(finite, scale, jnp.maximum(loss_scale.scale / 2, 1.0)),
        finite_steps=jnp.where(grown, 0, finite_steps),
        skipped_steps=jnp.where(finite, 0, loss_scale.skipped_steps + 1),
    )


def _select(condition: jax.Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
