"""The evaluations of a run: when one is due, what it finds, and when enough of them found nothing
better."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from light_jax.data.loader import validation_batches
from light_jax.data.mixed import Part, parts_of
from light_jax.parallel.devices import out_of_memory
from light_jax.parallel.hosts import Left, together
from light_jax.parallel.sharding import to_global
from light_jax.reporting.log import Log
from light_jax.reporting.units import counted
from light_jax.state import Params, Run, to_bfloat16
from light_jax.training.compiled import Steps
from light_jax.training.signals import Stopper
from light_llm.errors import UserError


@dataclass(frozen=True)
class Evaluation:
    """The outcome of a step's evaluation, if one was due."""

    loss: float | None = None
    improved: bool = False  # the loss is the best so far
    owed: bool = False  # it was stopped: the resume begins with it
    error: UserError | None = None


def patience_is_over(run: Run) -> str:
    since, best = run.host.evaluations_since_best, run.host.best_val_step
    at = "" if best is None else f" of step {best}"
    return (
        f"no better val loss than that{at} in {counted(since, 'evaluation')} "
        f"(early_stopping_patience={run.cfg.early_stopping_patience})"
    )


def evaluate_if_due(
    run: Run, steps: Steps, step: int, log: Log, stopper: Stopper, *, trained: bool
) -> Evaluation:
    """Evaluate, if it is due after this step or owed."""
    on_time = step == run.cfg.num_steps or step % run.cfg.eval_every == 0
    run.host.evaluation_due = run.val_stream is not None and (on_time or not trained)
    if not run.host.evaluation_due:
        return Evaluation()
    with log.paused("evaluating"):
        try:
            with out_of_memory("evaluation"):
                loss, improved = _evaluate(run, steps, step, log, stopper)
        except Left:
            return Evaluation(owed=True)
        except UserError as error:
            return Evaluation(owed=True, error=error)
    run.host.evaluation_due = log.failure is not None  # then its line is owed
    return Evaluation(loss, improved)


def _evaluate(run: Run, steps: Steps, step: int, log: Log, stopper: Stopper) -> tuple[float, bool]:
    """Log the mean loss over the validation tokens; (it, whether it is the best so far).

    Of several sources it is the mean of their losses, weighted by their shares. The average of the
    weights is evaluated too, on the same batches.

    Raises:
        Left: a signal came between two batches.
    """
    assert run.val_stream is not None
    parts = parts_of(run.val_stream, run.cfg.eval_steps)
    models = [run.state.params, *_averaged(run)]
    losses = [_losses(run, steps, models, part, stopper) for part in parts]
    loss, *of_average = (_together(parts, of_model) for of_model in zip(*losses, strict=True))
    so_far = run.host.best_val_loss
    best = math.isfinite(loss) and (so_far is None or loss < so_far)
    run.host.evaluations_since_best += 1
    if best:
        run.host.best_val_loss, run.host.best_val_step = loss, step
        run.host.evaluations_since_best = 0
    named = {
        part.name: of[0] for part, of in zip(parts, losses, strict=True) if part.name is not None
    }
    log.validation(step, loss, best, named, of_average[0] if of_average else None)
    return loss, best


def _together(parts: Sequence[Part], losses: Sequence[float]) -> float:
    if len(parts) == 1:
        return losses[0]
    return math.fsum(part.share * loss for part, loss in zip(parts, losses, strict=True))


def _losses(
    run: Run, steps: Steps, models: Sequence[Params], part: Part, stopper: Stopper
) -> list[float]:
    """The mean loss of each model over the tokens of a source.

    Raises:
        Left: a signal came between two batches.
    """
    assert steps.evaluate is not None
    totals, tokens = [0.0] * len(models), 0.0
    validation = validation_batches(
        part.stream, run.cfg.batch_size, part.steps, run.rows, run.cfg.num_workers
    )

    def next_batch() -> tuple[np.ndarray, np.ndarray] | None:
        if stopper.asked:
            raise Left
        return next(validation, None)

    with contextlib.closing(validation):
        while (batch := together(next_batch)) is not None:
            shared = [to_global(part, run.rows, run.cfg.batch_size, 0, run.mesh) for part in batch]
            for number, params in enumerate(models):
                loss_sum, num_tokens = steps.evaluate(params, *shared)
                totals[number] += float(loss_sum)
            tokens += float(num_tokens)
    return [total / tokens for total in totals]


def _averaged(run: Run) -> list[Params]:
    """The average of the weights as the model computes with it, if there is one."""
    average = run.state.average
    if average is None:
        return []
    return [jax.jit(to_bfloat16)(average) if run.cfg.bf16_model_weights else average]
