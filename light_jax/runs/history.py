"""metrics.jsonl as curves: read once, then only what was added."""

from __future__ import annotations

import json
import math
import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from light_jax.reporting.metrics import LONGEST_LINE, NAME
from light_llm.files import given

PREFIXES = ("train/", "val/", "perf/")
MOST_CURVES = 64
LAST_STEP = 2**31
LARGEST, SMALLEST = 1e30, 1e-30
"""Of what can be drawn; a value beyond is none, one below is 0."""


@dataclass
class Curve:
    """Values that are finite, and their steps, in the order of the file."""

    steps: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def last(self) -> float | None:
        return self.values[-1] if self.values else None

    def lowest(self) -> tuple[int, float] | None:
        """(step, value) of the lowest value, the first of equal ones."""
        if not self.values:
            return None
        value = min(self.values)
        return int(self.steps[self.values.index(value)]), value

    def at(self, step: int) -> float | None:
        """The newest value of a step."""
        for i in range(len(self.steps) - 1, -1, -1):
            if self.steps[i] == step:
                return self.values[i]
        return None


class History:
    """The curves of one run. `update` reads the lines that were added since."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / NAME
        self._forget()

    def _forget(self) -> None:
        self.curves: dict[str, Curve] = {}
        self.step = 0
        """The newest step of a line."""
        self.tokens = 0
        self.tokens_per_step = 0.0
        self.time: float | None = None
        """When the newest line of training was written, in seconds since 1970."""
        self._offset, self._file = 0, (0, 0)

    def curve(self, name: str) -> Curve:
        """The curve of that name, without a point where it was not logged."""
        return self.curves.get(name, Curve())

    def update(self) -> None:
        """Read the lines that were added, or all of them where the file is another one.

        Lines that are not what a run writes are passed over, and so is one that is not whole yet.

        Raises:
            UserError: there is a file that cannot be read.
        """
        if not os.path.lexists(self.path):
            self._forget()
            return
        with given.open_regular(self.path) as file:
            stat = os.fstat(file.fileno())
            if (stat.st_dev, stat.st_ino) != self._file or stat.st_size < self._offset:
                self._forget()
                self._file = stat.st_dev, stat.st_ino
            file.seek(self._offset)
            while self._offset < given.LARGE and (line := file.readline(LONGEST_LINE)):
                if not line.endswith(b"\n") and len(line) < LONGEST_LINE:
                    break
                self._offset += len(line)
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            values = json.loads(line.decode())  # a hundred thousand lines: no layer between
        except (ValueError, RecursionError):
            return
        step = values.get("step") if isinstance(values, dict) else None
        if type(step) is not int or not 0 <= step < LAST_STEP:
            return
        self.step = max(self.step, step)
        self._count_tokens(step, values)
        for name, value in values.items():
            curve = self.curves.get(name) or self._begin(name)
            if curve is not None and _drawable(number := as_number(value)):
                curve.steps.append(step)
                curve.values.append(number if abs(number) > SMALLEST else 0.0)

    def _begin(self, name: str) -> Curve | None:
        """The curve of a name that is new; None where it is none, or there are too many."""
        if not name.startswith(PREFIXES):
            return None
        if name not in self.curves and len(self.curves) < MOST_CURVES:
            self.curves[name] = Curve()
        return self.curves.get(name)

    def _count_tokens(self, step: int, values: dict[str, Any]) -> None:
        tokens, time = as_number(values.get("tokens")), as_number(values.get("time"))
        if tokens is not None and step > 0:
            self.tokens, self.tokens_per_step = int(tokens), tokens / step
        if time is not None:
            self.time = time


def _drawable(number: float | None) -> TypeGuard[float]:
    return number is not None and abs(number) < LARGEST


def read(directory: Path) -> History:
    """The history of a run's folder; empty without a metrics.jsonl.

    Raises:
        UserError: it cannot be read.
    """
    history = History(directory)
    history.update()
    return history


def as_number(value: Any) -> float | None:
    """A finite number from JSON; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # JSON's integers have no end
        return None
    return number if math.isfinite(number) else None
