"""The verdict on a step: does it count, update, end the run; and float16's loss scale.

Part of the traced step: it selects and never branches on a number.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from light_jax.state import LossScale, TrainState

MAX_SKIPS = 50  # float16 overflows in a row that end the run
INITIAL_LOSS_SCALE = 2.0**16
LOSS_SCALE_GROWTH_INTERVAL = 2000


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on step n, counted from 0.

    | bad | loss   | norm   | dtype   | overflows || finite | skipped | counts | update | bad_step |
    |-----|--------|--------|---------|-----------||--------|---------|--------|--------|----------|
    | no  | finite | finite | any     |           || yes    | no      | yes    | yes    | -1       |
    | no  | finite | inf    | float16 | 1 to 49   || no     | yes     | yes    | no     | -1       |
    | no  | finite | inf    | float16 | 50        || no     | yes     | no     | no     | n        |
    | no  | finite | inf    | other   |           || no     | no      | no     | no     | n        |
    | no  | inf    | any    | any     |           || no     | no      | no     | no     | n        |
    | k   | any    | any    | any     |           || as without k     | no     | no     | k        |

    `bad` is the step that was bad before this one, `inf` any number that is not finite; `overflows`
    counts those in a row, with this one (the limit is MAX_SKIPS).
    """

    finite: jax.Array  # bool, loss and gradient norm
    skipped: jax.Array  # bool, float16's gradients overflowed
    counts: jax.Array  # bool, the step is done: its number, its loss and the loss scale go on
    update: jax.Array  # bool, weights and moments change
    bad_step: jax.Array  # int32, the first step that was not finite, or -1


def judge(state: TrainState, loss: jax.Array, norm: jax.Array) -> Verdict:
    """The verdict on the step that `state` begins.

    Args:
        loss: float32, unscaled.
        norm: float32, of the gradients, unscaled and not clipped.
    """
    loss_is_finite, norm_is_finite = jnp.isfinite(loss), jnp.isfinite(norm)
    finite = loss_is_finite & norm_is_finite
    skipped, hopeless = jnp.bool(False), jnp.bool(False)
    if state.loss_scale is not None:
        skipped = loss_is_finite & ~norm_is_finite
        hopeless = skipped & (state.loss_scale.skipped_steps + 1 >= MAX_SKIPS)
    untouched = state.bad_step < 0
    counts = untouched & (finite | skipped) & ~hopeless
    return Verdict(
        finite=finite,
        skipped=skipped,
        counts=counts,
        update=counts & finite,
        bad_step=jnp.where(untouched & ~counts, state.step, state.bad_step),
    )


def next_loss_scale(loss_scale: LossScale | None, finite: jax.Array) -> LossScale | None:
    """Half after an overflow; double after LOSS_SCALE_GROWTH_INTERVAL finite steps in a row."""
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
