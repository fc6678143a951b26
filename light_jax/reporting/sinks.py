"""Where the lines of a run go: metrics.jsonl, samples.jsonl and the trackers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from light_jax.parallel.hosts import is_main
from light_jax.reporting.metrics import SAMPLES, MetricsFile
from light_jax.reporting.trackers import TRACKERS
from light_jax.reporting.tracking import Lost, Sample, Tracker
from light_jax.state import Run
from light_llm.errors import UserError


class Sinks:
    """The files and the trackers of process 0; the others have none.

    A file that cannot be written ends the run after its step, since it is the record of the run. A
    tracker that fails is left out from then on, with a warning.

    Args:
        warn: prints a line.
    """

    def __init__(self, run: Run, directory: Path, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self.failure: UserError | None = None
        """Why the first failing line of a file could not be written."""
        self._failed: set[MetricsFile | Tracker] = set()
        self._metrics: MetricsFile | None = None
        self._samples: MetricsFile | None = None
        self._trackers: list[Tracker] = []
        if not is_main():
            return
        step, redo = int(run.state.step), run.host.evaluation_due
        self._metrics = MetricsFile(directory, step, redo=redo)
        if run.cfg.sample_prompts or (directory / SAMPLES).exists():
            self._samples = MetricsFile(directory, step, redo=redo, name=SAMPLES)
        self._trackers = [TRACKERS[name](run, directory) for name in run.cfg.trackers]

    def write(self, line: dict[str, Any], in_file: dict[str, Any] | None = None) -> None:
        """Write a line everywhere.

        Args:
            in_file: what metrics.jsonl gets in its place.
        """
        if (file := self._metrics) is not None:
            self._send(file, lambda: file.write(line if in_file is None else in_file))
        for tracker in self._trackers:
            self._send(tracker, lambda tracker=tracker: tracker.write(line))  # type: ignore[misc]

    def show(self, step: int, samples: list[Sample]) -> None:
        """Keep the texts that were sampled after `step`."""
        if (file := self._samples) is not None:
            for sample in samples:
                line = {"step": step, "time": time.time(), **dataclasses.asdict(sample)}
                self._send(file, lambda line=line: file.write(line))  # type: ignore[misc]
        for tracker in self._trackers:
            self._send(tracker, lambda tracker=tracker: tracker.show(step, samples))  # type: ignore[misc]

    def _send(self, sink: MetricsFile | Tracker, send: Callable[[], None]) -> None:
        """Write to a file or a tracker, if it did not fail before."""
        if sink in self._failed:
            return
        try:
            send()
        except UserError as failure:
            self._failed.add(sink)
            self.failure = self.failure or failure
        except Lost as loss:
            self._failed.add(sink)
            self._warn(f"warning: {loss}")

    def close(self, *, raises: bool) -> None:
        """Close all.

        Args:
            raises: an error of a file; otherwise it is told as a warning, since another one ended
                the run.

        Raises:
            UserError: a file is not whole.
        """
        failures = []
        for sink in (self._metrics, *self._trackers, self._samples):
            if sink is None:
                continue
            try:
                sink.close()
            except UserError as failure:
                failures.append(failure)
            except Lost as loss:
                if sink not in self._failed:
                    self._warn(f"warning: {loss}")
        if failures and raises:
            raise failures[0]
        for also in failures:
            self._warn(f"warning: {also}")
