"""How a run ends, in words: finished, to be continued, or over before it began."""

from __future__ import annotations

import shlex
from pathlib import Path

from light_jax.checkpoint.saver import Saver
from light_jax.reporting.ending import next_commands, results
from light_jax.reporting.log import Log
from light_jax.reporting.units import duration
from light_jax.state import Run
from light_jax.training.signals import Stopper
from light_jax.training.validation import patience_is_over
from light_llm.checkpoint.layout import locate


def nothing_to_do(run: Run) -> str | None:
    """Why the run that is resumed has ended already."""
    done, wanted = run.steps_done, run.cfg.num_steps
    if done > wanted or (done == wanted and not run.owes_evaluation):
        return f"num_steps={wanted}, and step {done} is done"
    if done and run.stops_early and not run.owes_evaluation:
        return (
            f"{patience_is_over(run)}; to go on from step {done}, raise "
            "early_stopping_patience or leave it out"
        )
    return None


def tell_end(run: Run, log: Log, saver: Saver, stopper: Stopper, config_path: Path) -> int:
    """Say how training ended and what can follow. Returns the exit code."""
    step = int(run.state.step)
    finished = run.is_finished
    resume = ["llm-train", str(config_path), "--resume", "auto"]
    if finished:
        why = f": {patience_is_over(run)}" if step < run.cfg.num_steps else ""
        log.message(f"done        the model is {locate(saver.directory / 'final').weights}{why}")
    else:
        by = "a signal"
        if stopper.out_of_time and run.cfg.max_time is not None:
            by = f"max_time ({duration(run.cfg.max_time)})"
        log.message(f"stopped by {by}; continue with --resume auto ({step=})")
    for line in results(run, step, log.meter.elapsed):
        log.message(line)
    commands = next_commands(run, saver.directory) if finished else []
    for line in commands if finished else [f"continue    {shlex.join(resume)}"]:
        log.reporter.command(line)
    return 0 if finished else stopper.exit_code
