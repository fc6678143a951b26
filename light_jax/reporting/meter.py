"""Where the time of a run goes: steps, waiting for data, pauses; and what memory it takes."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax


@dataclass(frozen=True)
class Speed:
    """Of the steps since the reading before."""

    steps: int
    seconds: float  # without pauses
    waited: float  # of these, for data

    @property
    def step_seconds(self) -> float:
        return self.seconds / max(1, self.steps)

    @property
    def data_wait(self) -> float:
        """A share, 0 to 1."""
        return min(1.0, self.waited / self.seconds) if self.seconds > 0 else 0.0


class Meter:
    """Measures the loop from now on; evaluations and saves are pauses, no training time."""

    def __init__(self, step: int) -> None:
        self._first = self._step = step
        self._began = self._last = time.perf_counter()
        self._waited = self._paused = 0.0

    def waited(self, seconds: float) -> None:
        """Take how long a batch was waited for."""
        self._waited += seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self._paused += seconds
        self._last += seconds

    def read(self, step: int) -> Speed:
        """The speed since the last call, of the steps up to `step`."""
        now = time.perf_counter()
        speed = Speed(step - self._step, now - self._last, self._waited)
        self._step, self._last, self._waited = step, now, 0.0
        return speed

    @property
    def elapsed(self) -> float:
        """Seconds in all, pauses included."""
        return time.perf_counter() - self._began

    def left(self, step: int, num_steps: int, step_seconds: float) -> float:
        """Seconds until `num_steps`, if pauses go on as they did so far."""
        pause = self._paused / max(1, step - self._first)
        return (num_steps - step) * (step_seconds + pause)


def memory_bytes(devices: list[jax.Device]) -> int:
    """The most bytes that were in use on one device; on a CPU, what the process holds now."""
    peaks = [
        stats["peak_bytes_in_use"]
        for stats in (device.memory_stats() for device in devices if device.platform != "cpu")
        if stats and "peak_bytes_in_use" in stats
    ]
    return max(peaks, default=0) or _resident()


def _resident() -> int:
    try:
        pages = Path("/proc/self/statm").read_bytes().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):  # not Linux: the most so far
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
