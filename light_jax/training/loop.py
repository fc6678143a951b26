"""The loop: fetch, step, log, evaluate, save."""

from __future__ import annotations

import math
import time
from pathlib import Path

import jax
import numpy as np

from light_jax.checkpoint.ownership import step_tag
from light_jax.checkpoint.place import continues_here
from light_jax.checkpoint.saver import Saver
from light_jax.config import TrainingConfig, load_config
from light_jax.data.loader import BatchLoader
from light_jax.parallel.devices import out_of_memory, return_freed_memory
from light_jax.parallel.hosts import together
from light_jax.parallel.sharding import to_global
from light_jax.reporting.console import Reporter
from light_jax.reporting.log import Log
from light_jax.reporting.summary import describe
from light_jax.runs.live import Page
from light_jax.state import Run
from light_jax.training.compiled import Steps, compile_steps
from light_jax.training.diagnosis import explained
from light_jax.training.ending import nothing_to_do, tell_end
from light_jax.training.memory import in_words, remedies, room
from light_jax.training.optimizer import learning_rate
from light_jax.training.profile import Profile
from light_jax.training.run import batches, fill, prepare
from light_jax.training.sampling import Sampler
from light_jax.training.signals import Stopper
from light_jax.training.validation import Evaluation, evaluate_if_due
from light_llm.bugs import keep_tracebacks_in
from light_llm.errors import NonFinite, UserError, with_earlier


def run_config(
    config_path: str | Path,
    resume: str | None = None,
    cfg: TrainingConfig | None = None,
    started: float | None = None,
) -> int:
    """Do what `llm-train CONFIG [--resume …]` does. Returns the exit code.

    Args:
        cfg: what was read from the config file, if it was.
        started: the time.monotonic() from which max_time counts; None is now.

    Raises:
        UserError: the config, its data or the checkpoint cannot be used, and nothing was written;
            or a shard or the disk fails during the run.
        NonFinite: training stopped on a non-finite step.
    """
    started = time.monotonic() if started is None else started
    with Stopper() as stopper:
        run = prepare(load_config(config_path) if cfg is None else cfg, resume)
        with Reporter() as reporter:
            for line in describe(run):
                reporter.line(line)
            stopper.end_at(started + (run.cfg.max_time or math.inf))
            if (reason := nothing_to_do(run)) is not None:
                reporter.line(f"nothing to do: {reason}")
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
        keep_tracebacks_in(saver.directory)
        sampler = together(lambda: Sampler(run))
        advice = remedies(cfg, run.mesh, resuming=run.resumed is not None)
        sizes = in_words(steps.memory, room(run.mesh.local_devices))
        try:
            with reporter.showing(log.numbers), out_of_memory("training", advice, sizes):
                _loop(run, steps, loader, log, saver, stopper, profile, sampler)
        except NonFinite as bad:
            saver.wait()
            raise explained(run, bad, config_path, saver.check) from None
        return tell_end(run, log, saver, stopper, config_path)


def _loop(
    run: Run,
    steps: Steps,
    loader: BatchLoader,
    log: Log,
    saver: Saver,
    stopper: Stopper,
    profile: Profile,
    sampler: Sampler,
) -> None:
    cfg, step = run.cfg, int(run.state.step)
    stopper.training_begins()
    ends = run.owes_evaluation and _after(
        step, run, steps, log, saver, stopper, sampler, trained=False
    )
    while not ends:
        with profile.step(step + 1):
            local_tokens = _next(loader, step, run, log, saver)
            tokens = to_global(local_tokens, run.rows, cfg.batch_size, 1, run.mesh)
            rate = learning_rate(cfg, step)
            step += 1
            run.leaves, metrics = steps.train(run.leaves, tokens, np.float32(rate))
            log.step(step, rate, metrics)
        ends = _after(step, run, steps, log, saver, stopper, sampler)


def _next(loader: BatchLoader, step: int, run: Run, log: Log, saver: Saver) -> np.ndarray:
    """What this process holds of the batch that follows `step`.

    Raises:
        UserError: a shard is bad. On one host `step` is committed first; of several, the others are
            waiting in the next step already, and could not take part in a save.
    """
    try:
        began = time.perf_counter()
        batch = next(loader)
        log.meter.waited(time.perf_counter() - began)
        return batch
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
    sampler: Sampler,
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
    evaluation = evaluate_if_due(run, steps, step, log, stopper, trained=trained)
    if not evaluation.owed:
        sampler.show(step, log)
    failure = evaluation.error or log.failure
    if failure is not None or saver.failed:
        stopper.ask()
    cut_short = stopper.requested(step) or evaluation.owed
    tags = _tags_due(run, step, evaluation, trained=trained, cut_short=cut_short)
    last = step == run.cfg.num_steps or (evaluation.loss is not None and run.stops_early)
    if not tags and not cut_short and not last:
        return False  # the metrics stay on the device: reading them would wait for the step
    with log.paused("saving"), with_earlier(failure):
        if tags:
            saver.save(tags, run.state, run.host, evaluation.loss)
            if step_tag(step) in tags:  # a signal meanwhile finds its step saved
                cut_short = cut_short or stopper.requested(step)
        ends = cut_short or last
        if ends:
            saver.wait()
    if ends:
        together(lambda: _raise(failure or log.failure))
    return ends


def _tags_due(
    run: Run, step: int, evaluation: Evaluation, *, trained: bool, cut_short: bool
) -> list[str]:
    """The tags of a step, in the order in which they are committed.

    Args:
        trained: this run made the step, and did not only evaluate it.
        cut_short: a signal or an error ends the run here, to be continued.
    """
    due = {
        "best": evaluation.improved,
        step_tag(step): trained and (cut_short or step % run.cfg.save_every == 0),
        "final": not evaluation.owed
        and (step == run.cfg.num_steps or (evaluation.loss is not None and run.stops_early)),
    }
    return [tag for tag, is_due in due.items() if is_due]


def _raise(error: UserError | None) -> None:
    if error is not None:
        raise error
