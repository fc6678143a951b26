"""The loop: fetch, step, log, evaluate, save."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from light_jax.checkpoint import protocol
from light_jax.checkpoint.saver import Saver
from light_jax.config import TrainingConfig, load_config
from light_jax.data.loader import BatchLoader, validation_batches
from light_jax.parallel.hosts import together
from light_jax.parallel.sharding import to_global
from light_jax.reporting.console import Reporter, size
from light_jax.reporting.log import Log
from light_jax.reporting.summary import describe
from light_jax.state import Run
from light_jax.training.diagnosis import explained
from light_jax.training.optimizer import learning_rate
from light_jax.training.run import Steps, batches, compile_steps, prepare
from light_jax.training.signals import Stopper
from light_llm.errors import NonFinite, UserError


def run_config(config_path: str | Path, resume: str | None = None) -> int:
    """All that `llm-train CONFIG [--resume …]` does. Returns the exit code.

    Raises:
        UserError: the config, its data or the checkpoint cannot be used; nothing was written, but
            by a run in whose midst a shard turns out to be bad or the disk fails.
        NonFinite: training stopped on a non-finite step.
    """
    run = prepare(load_config(config_path), resume)
    with Reporter() as reporter:
        for line in describe(run):
            reporter.line(line)
        done = int(run.state.step)
        if done >= run.cfg.num_steps:
            reporter.line(f"nothing to do: num_steps={run.cfg.num_steps}, and step {done} is done")
            return finish(run, Path(config_path))
        with Stopper() as stopper:  # from here on a signal is waited for: compiling takes long
            steps = compile_steps(run)
            if steps.memory is not None:
                memory = size(steps.memory)
                reporter.line(f"memory      {memory} per device for the compiled step")
            return train(run, steps, Path(config_path), reporter, stopper)


def finish(run: Run, config_path: Path) -> int:
    """Write the `final` that a run lacks if it was stopped after its last step's other tags."""
    saver = Saver(run.cfg, run.resumed)
    assert run.resumed is not None
    own = run.resumed.prefix.parent.absolute() == saver.directory.absolute()
    if own and not saver.has_final():
        with saver.open(config_path):
            saver.save(["final"], run.state, run.host)
            saver.wait()
    return 0


def train(run: Run, steps: Steps, config_path: Path, reporter: Reporter, stopper: Stopper) -> int:
    """Train from the run's state to num_steps, or to a signal. Returns the exit code."""
    cfg, first_step = run.cfg, int(run.state.step)
    with (
        Saver(cfg, run.resumed).open(config_path) as saver,
        together(lambda: Log(run, saver.directory, reporter)) as log,
        batches(run, first_step, cfg.num_steps) as loader,
    ):
        reporter.start(first_step, cfg.num_steps)
        try:
            return _loop(run, steps, loader, log, saver, stopper)
        except NonFinite as bad:
            saver.wait()
            raise explained(run, bad, config_path, saver.check) from None


def _loop(
    run: Run, steps: Steps, loader: BatchLoader, log: Log, saver: Saver, stopper: Stopper
) -> int:
    cfg = run.cfg
    for step, local_tokens in enumerate(loader, int(run.state.step) + 1):
        tokens = to_global(local_tokens, run.rows, cfg.batch_size, 1, run.mesh)
        rate = learning_rate(cfg, step - 1)
        run.state, metrics = steps.train(run.state, tokens, np.float32(rate))
        log.step(step, rate, metrics)
        improved, bad_shard = _evaluation_due(run, steps, step, log)
        cut_short = stopper.requested(step) or bad_shard is not None
        tags = _tags_due(
            cfg, step, improved=improved, cut_short=cut_short, failed=bad_shard is not None
        )
        if tags:
            with log.paused():
                saver.save(tags, run.state, run.host)
        if cut_short:
            break
    saver.wait()  # nobody hears of the end before its checkpoint is committed
    if bad_shard is not None:
        raise bad_shard
    if step < cfg.num_steps:
        assert stopper.signal is not None
        log.told(f"stopped by a signal; continue with --resume auto ({step=})")
        return 128 + stopper.signal
    log.told(f"done        the model is {saver.directory / 'final.safetensors'}")
    return 0


def _tags_due(
    cfg: TrainingConfig, step: int, *, improved: bool, cut_short: bool, failed: bool
) -> list[str]:
    """The tags of a step, in the order in which they are committed.

    Args:
        cut_short: the run ends here, by a signal or as `failed`: it is to be continued.
    """
    due = {
        "best": improved,
        protocol.step_tag(step): cut_short or step % cfg.save_every == 0,
        "final": step == cfg.num_steps and not failed,
    }
    return [tag for tag, is_due in due.items() if is_due]


def _evaluation_due(run: Run, steps: Steps, step: int, log: Log) -> tuple[bool, UserError | None]:
    """Evaluate, if the step is one for it.

    Returns:
        Whether the loss is the best so far, and the error of a bad shard: raised at once, it would
        cost the steps since the last save.
    """
    last = step == run.cfg.num_steps
    if run.val_stream is None or not (last or step % run.cfg.eval_every == 0):
        return False, None
    with log.paused():
        try:
            return _evaluate(run, steps, step, log), None
        except UserError as error:
            return False, error


def _evaluate(run: Run, steps: Steps, step: int, log: Log) -> bool:
    """Log the mean loss over the validation tokens; True if it is the best so far."""
    assert run.val_stream is not None
    assert steps.evaluate is not None
    total, tokens = 0.0, 0.0
    validation = validation_batches(
        run.val_stream, run.cfg.batch_size, run.cfg.eval_steps, run.rows, run.cfg.num_workers
    )
    while (batch := together(lambda: next(validation, None))) is not None:
        shared = [to_global(part, run.rows, run.cfg.batch_size, 0, run.mesh) for part in batch]
        loss_sum, num_tokens = steps.evaluate(run.state.params, *shared)
        total, tokens = total + float(loss_sum), tokens + float(num_tokens)
    loss = total / tokens
    so_far = run.host.best_val_loss
    best = math.isfinite(loss) and (so_far is None or loss < so_far)
    if best:
        run.host.best_val_loss = loss
    log.validation(step, loss, best)
    return best
