"""What becomes of a step: the truth table of `Verdict`, row by row."""

import jax.numpy as jnp
import pytest

from light_jax.state import LossScale, TrainState
from light_jax.training.verdict import MAX_SKIPS, Verdict, judge

INF, NAN = float("inf"), float("nan")
N, K = 7, 3  # the step that is judged, an earlier one that was bad
LAST = MAX_SKIPS - 1  # overflows in a row before the one that ends the run

# bad before, loss, norm, overflows before (None: not float16)
#     -> finite, skipped, counts, update, bad_step
TABLE = [
    # a finite step
    ((-1, 2.0, 1.0, None), (True, False, True, True, -1)),
    ((-1, 2.0, 1.0, 0), (True, False, True, True, -1)),
    ((-1, 2.0, 1.0, LAST), (True, False, True, True, -1)),
    # float16's gradients overflow: the first time, the last time that is borne, once too often
    ((-1, 2.0, INF, 0), (False, True, True, False, -1)),
    ((-1, 2.0, NAN, 0), (False, True, True, False, -1)),
    ((-1, 2.0, INF, LAST - 1), (False, True, True, False, -1)),
    ((-1, 2.0, INF, LAST), (False, True, False, False, N)),
    # gradients that overflow without a loss scale to lower
    ((-1, 2.0, INF, None), (False, False, False, False, N)),
    ((-1, 2.0, NAN, None), (False, False, False, False, N)),
    # a loss that is not finite
    ((-1, NAN, 1.0, None), (False, False, False, False, N)),
    ((-1, INF, NAN, None), (False, False, False, False, N)),
    ((-1, NAN, 1.0, 0), (False, False, False, False, N)),
    ((-1, INF, INF, 0), (False, False, False, False, N)),
    ((-1, INF, INF, LAST), (False, False, False, False, N)),
    # once a step was bad, no later one counts, and the first one is remembered
    ((K, 2.0, 1.0, None), (True, False, False, False, K)),
    ((K, 2.0, INF, None), (False, False, False, False, K)),
    ((K, NAN, 1.0, None), (False, False, False, False, K)),
    ((K, 2.0, 1.0, 0), (True, False, False, False, K)),
    ((K, 2.0, INF, LAST), (False, True, False, False, K)),
]


@pytest.mark.parametrize("given, expected", TABLE)
def test_the_truth_table(given, expected):
    bad_before, loss, norm, overflows = given
    state = TrainState(
        step=jnp.int32(N),
        params=None,
        master=None,
        average=None,
        opt_state=None,
        loss_scale=(
            None
            if overflows is None
            else LossScale(jnp.float32(8), jnp.int32(0), jnp.int32(overflows))
        ),
        loss_sum=jnp.float32(0),
        loss_count=jnp.int32(0),
        bad_step=jnp.int32(bad_before),
    )
    verdict = judge(state, jnp.float32(loss), jnp.float32(norm))
    finite, skipped, counts, update, bad_step = expected
    assert verdict == Verdict(finite, skipped, counts, update, bad_step)
