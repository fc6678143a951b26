"""`profile_steps`: a trace of some steps, for Perfetto and TensorBoard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import jax

from light_jax.reporting.log import Log
from light_jax.state import Run
from light_llm.errors import one_line

FOLDER = "profile"
"""In checkpoint_dir."""


class Profile:
    """Traces the steps of `profile_steps` that this run makes; every process its own.

    A trace that cannot be made or written is a warning: it must not cost the training.
    """

    def __init__(self, run: Run, directory: Path, log: Log) -> None:
        self._run, self._log, self._folder = run, log, directory / FOLDER
        if jax.process_count() > 1:  # jax names its files by the host, which may run several
            self._folder /= f"process{jax.process_index()}"
        first, self._last = run.cfg.profile_steps or (0, 0)
        self._done = int(run.state.step)
        self._first = max(first, self._done + 1)
        self._tracing = False

    def __enter__(self) -> Profile:
        if self._run.cfg.profile_steps is not None and self._done >= self._last:
            self._log.message(
                f"profile     none: step {self._done} is done, and profile_steps ends at "
                f"{self._last}"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Write what was traced so far, if the run ends in the midst of it."""
        if self._tracing:
            self._write()

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around everything that makes step number `step`, the fetching of its batch included."""
        if not self._first <= step <= self._last:
            yield
            return
        if step == self._first:
            with self._log.paused():
                self._begin()
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        self._done = step
        if step == self._last and self._tracing:
            with self._log.paused():
                self._write()

    def _begin(self) -> None:
        jax.block_until_ready(self._run.leaves)  # the step before is not traced
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # noting each call of a function would slow the steps down
        try:
            jax.profiler.start_trace(
                self._folder, create_perfetto_trace=True, profiler_options=options
            )
        except (RuntimeError, OSError) as error:  # another trace is under way
            self._warn(error)
        else:
            self._tracing = True

    def _write(self) -> None:
        """End the trace once the last step is done on the devices, and say where it lies."""
        self._tracing = False
        jax.block_until_ready(self._run.leaves)
        try:
            jax.profiler.stop_trace()
        except (RuntimeError, OSError, ValueError) as error:  # the disk is full, a folder is none
            self._warn(error)
            return
        made = sorted(self._folder.glob("plugins/profile/*/perfetto_trace.json.gz"))
        self._log.reporter.line(
            f"profile     steps {self._first} to {self._done}: open {made[-1]} at "
            f"https://ui.perfetto.dev, or pip install xprof tensorboard and run tensorboard "
            f"--logdir {self._folder}"
        )

    def _warn(self, error: Exception) -> None:
        self._log.reporter.line(f"warning: {self._folder}: no profile ({one_line(error)})")
