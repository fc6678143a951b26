"""The loop: fetch, step, log, evaluate, save."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from light_jax.checkpoint.ownership import step_tag
from light_jax.checkpoint.place import continues_here
from light_jax.checkpoint.saver import Saver
from light_jax.config import TrainingConfig, load_config
from light_jax.data.loader import BatchLoader, validation_batches
from light_jax.parallel.devices import out_of_memory, return_freed_memory
from light_jax.parallel.hosts import Left, together
from light_jax.parallel.sharding import to_global
from light_jax.reporting.console import Reporter
from light_jax.reporting.log import Log
from light_jax.reporting.summary import describe
from light_jax.runs.live import Page
from light_jax.state import Run
from light_jax.training.compiled import Steps, compile_steps
from light_jax.training.diagnosis import explained
from light_jax.training.optimizer import learning_rate
from light_jax.training.profile import Profile
from light_jax.training.run import batches, fill, prepare
from light_jax.training.signals import Stopper
from light_llm.errors import NonFinite, UserError, with_earlier


def run_config(
    config_path: str | Path, resume: str | None = None, cfg: TrainingConfig | None = None
) -> int:
    """Do what `llm-train CONFIG [--resume …]` does. Returns the exit code.

    Args:
        cfg: what was read from the config file, if it was.

    Raises:
        UserError: the config, its data or the checkpoint cannot be used, and nothing was written;
            or a shard or the disk fails during the run.
        NonFinite: training stopped on a non-finite step.
    """
    with Stopper() as stopper:
        run = prepare(load_config(config_path) if cfg is None else cfg, resume)
        with Reporter() as reporter:
            for line in describe(run):
                reporter.line(line)
            done, wanted = run.steps_done, run.cfg.num_steps
            if done > wanted or (done == wanted and not _owes_evaluation(run)):
                reporter.line(f"nothing to do: num_steps={wanted}, and step {done} is done")
                return finish(run, Path(config_path))
            with reporter.compiling():
                steps = compile_steps(run)
            for line in steps.describe():
                reporter.line(line)
            fill(run)
            return_freed_memory()
            return train(run, steps, Path(config_path), reporter, stopper)


def finish(run: Run, config_path: Path) -> int:
    """Write the `final` tag of a run that was stopped between the tags of its last step."""
    saver = Saver(run.cfg, run.resumed)
    if continues_here(saver.directory, run.resumed) and not saver.has_final():
        fill(run)
        with saver.open(config_path):
            known = None if run.resumed is None else run.resumed.record.val_loss
            saver.save(["final"], run.state, run.host, known)
            saver.wait()
    return 0


def train(run: Run, steps: Steps, config_path: Path, reporter: Reporter, stopper: Stopper) -> int:
    """Train from the run's state to num_steps, or to a signal. Returns the exit code."""
    cfg, first_step = run.cfg, int(run.state.step)
    with (
        Saver(cfg, run.resumed).open(config_path) as saver,
        together(lambda: Log(run, saver.directory, reporter)) as log,
        batches(run, first_step, cfg.num_steps) as loader,
        Profile(run, saver.directory, log) as profile,
        Page(run, saver, log, reporter),
    ):
        reporter.start(first_step, cfg.num_steps)
        try:
            with out_of_memory("training"):
                return _loop(run, steps, loader, log, saver, stopper, profile)
        except NonFinite as bad:
            saver.wait()
            raise explained(run, bad, config_path, saver.check) from None


def _loop(
    run: Run,
    steps: Steps,
    loader: BatchLoader,
    log: Log,
    saver: Saver,
    stopper: Stopper,
    profile: Profile,
) -> int:
    cfg, step = run.cfg, int(run.state.step)
    stopper.training_begins()
    ends = _owes_evaluation(run) and _after(step, run, steps, log, saver, stopper, trained=False)
    while not ends:
        with profile.step(step + 1):
            local_tokens = _next(loader, step, run, log, saver)
            tokens = to_global(local_tokens, run.rows, cfg.batch_size, 1, run.mesh)
            rate = learning_rate(cfg, step)
            step += 1
            run.leaves, metrics = steps.train(run.leaves, tokens, np.float32(rate))
            log.step(step, rate, metrics)
        ends = _after(step, run, steps, log, saver, stopper)
    if step < cfg.num_steps or _owes_evaluation(run):
        log.message(f"stopped by a signal; continue with --resume auto ({step=})")
        return stopper.exit_code
    log.message(f"done        the model is {saver.directory / 'final.safetensors'}")
    return 0


def _next(loader: BatchLoader, step: int, run: Run, log: Log, saver: Saver) -> np.ndarray:
    """What this process holds of the batch that follows `step`.

    Raises:
        UserError: a shard is bad. On one host `step` is committed first; of several, the others are
            waiting in the next step already, and could not take part in a save.
    """
    try:
        return next(loader)
    except UserError as error:
        made_here = run.resumed is None or step > run.resumed.step
        if step > 0 and made_here and jax.process_count() == 1:
            with log.paused(), with_earlier(error):
                saver.save([step_tag(step)], run.state, run.host)
                saver.wait()
        raise


def _after(
    step: int,
    run: Run,
    steps: Steps,
    log: Log,
    saver: Saver,
    stopper: Stopper,
    *,
    trained: bool = True,
) -> bool:
    """Evaluate and save what is due after a step. Returns whether the run ends here.

    When it does, everything is committed before the end is printed.

    Args:
        trained: this run made the step; otherwise it is the resumed one, whose evaluation is owed.

    Raises:
        UserError: a validation shard or the disk of a log is bad. The step is committed first, if
            it can be: raised at once, the error would cost the steps since the last save.
    """
    evaluation = _evaluation_due(run, steps, step, log, stopper, trained=trained)
    failure = evaluation.error or log.failure
    if failure is not None or saver.failed:
        stopper.ask()
    cut_short = stopper.requested(step) or evaluation.owed
    tags = _tags_due(run.cfg, step, evaluation, trained=trained, cut_short=cut_short)
    if not tags and not cut_short and step < run.cfg.num_steps:
        return False  # the metrics stay on the device: reading them would wait for the step
    with log.paused(), with_earlier(failure):
        if tags:
            saver.save(tags, run.state, run.host, evaluation.loss)
            if step_tag(step) in tags:  # a signal meanwhile finds its step saved
                cut_short = cut_short or stopper.requested(step)
        ends = cut_short or step == run.cfg.num_steps
        if ends:
            saver.wait()
    if ends:
        together(lambda: _raise(failure or log.failure))
    return ends


@dataclass(frozen=True)
class Evaluation:
    """The outcome of a step's evaluation, if one was due."""

    loss: float | None = None
    improved: bool = False  # the loss is the best so far
    owed: bool = False  # it was stopped: the resume begins with it
    error: UserError | None = None


def _owes_evaluation(run: Run) -> bool:
    return run.host.evaluation_due and run.val_stream is not None


def _tags_due(
    cfg: TrainingConfig, step: int, evaluation: Evaluation, *, trained: bool, cut_short: bool
) -> list[str]:
    """The tags of a step, in the order in which they are committed.

    Args:
        trained: this run made the step, and did not only evaluate it.
        cut_short: a signal or an error ends the run here, to be continued.
    """
    due = {
        "best": evaluation.improved,
        step_tag(step): trained and (cut_short or step % cfg.save_every == 0),
        "final": step == cfg.num_steps and not evaluation.owed,
    }
    return [tag for tag, is_due in due.items() if is_due]


def _evaluation_due(
    run: Run, steps: Steps, step: int, log: Log, stopper: Stopper, *, trained: bool
) -> Evaluation:
    """Evaluate, if it is due after this step or owed."""
    on_time = step == run.cfg.num_steps or step % run.cfg.eval_every == 0
    run.host.evaluation_due = run.val_stream is not None and (on_time or not trained)
    if not run.host.evaluation_due:
        return Evaluation()
    with log.paused():
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

    Raises:
        Left: a signal came between two batches.
    """
    assert run.val_stream is not None
    assert steps.evaluate is not None
    total, tokens = 0.0, 0.0
    validation = validation_batches(
        run.val_stream, run.cfg.batch_size, run.cfg.eval_steps, run.rows, run.cfg.num_workers
    )

    def next_batch() -> tuple[np.ndarray, np.ndarray] | None:
        if stopper.asked:
            raise Left
        return next(validation, None)

    params = run.state.params
    with contextlib.closing(validation):
        while (batch := together(next_batch)) is not None:
            shared = [to_global(part, run.rows, run.cfg.batch_size, 0, run.mesh) for part in batch]
            loss_sum, num_tokens = steps.evaluate(params, *shared)
            total, tokens = total + float(loss_sum), tokens + float(num_tokens)
    loss = total / tokens
    so_far = run.host.best_val_loss
    best = math.isfinite(loss) and (so_far is None or loss < so_far)
    if best:
        run.host.best_val_loss = loss
    log.validation(step, loss, best)
    return loss, best


def _raise(error: UserError | None) -> None:
    if error is not None:
        raise error
