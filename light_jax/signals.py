"""SIGTERM and Ctrl-C: the first finishes the step and commits it, the second exits at once."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopper:
    """Listens while the context is open; `requested(step)` is asked after each step."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Stopper:
        for number in SIGNALS:
            if jax.process_count() > 1 and number == signal.SIGTERM:
                continue  # JAX's preemption service listens to it, and lets all hosts agree
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def requested(self, step: int) -> bool:
        """Whether to stop after `step` updates; the same answer on every host."""
        if jax.process_count() > 1:
            if multihost_utils.reached_preemption_sync_point(step):
                self.signal = self.signal or signal.SIGTERM
                return True
            return False
        return self.signal is not None
