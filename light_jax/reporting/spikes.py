"""Steps whose loss or gradient norm is far above what was usual before, by a robust measure.

A value is compared with the median of the WINDOW values before it. Its distance is counted in
deviations: 1.4826 times the median distance from that median (MAD), which for a normal distribution
is its standard deviation, and which single spikes hardly move (Hampel 1974, The Influence Curve and
its Role in Robust Estimation). Of a gradient norm this is done with the logarithm: norms vary by a
factor. Only steps before the value decide, so that a resumed run, whose
window is in its checkpoint, finds what an uninterrupted one finds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WINDOW = 200
"""Steps that a value is compared with."""
LEAST = 100
"""With fewer nothing is judged: a loss falls fast at first."""
NORMAL = 1.4826
LEAST_SPREAD = {"loss": 0.01, "grad_norm": 0.05}
"""A deviation is at least this part of the value: a loss that hardly moves has no spike of 1 %."""
TINY = 1e-30
NAMES = ("loss", "grad_norm")
SHOWN_PLACES = 4
KEPT_PLACES = 256

Place = tuple[str, int, int]
"""A shard, and its first and last row."""


@dataclass(frozen=True)
class Spike:
    """A value that is far above the usual ones."""

    step: int  # from 1
    name: str  # of NAMES
    value: float
    deviations: float  # above the median
    usual: tuple[float, float]  # from and to: nine of ten values before

    def text(self, places: Sequence[Place]) -> str:
        """A line for a person."""
        low, high = self.usual
        shown = [f"{shard}: rows {a} to {b}" for shard, a, b in places[:SHOWN_PLACES]]
        if len(places) > SHOWN_PLACES:
            shown.append(f"{len(places) - SHOWN_PLACES} more places (metrics.jsonl)")
        return (
            f"spike       step {self.step}: {self.name.replace('_', ' ')} {self.value:.4g}, "
            f"usually {low:.4g} to {high:.4g}; "
            f"it read {', '.join(shown) or 'shards that cannot be read'}"
        )

    def numbers(self) -> dict[str, float]:
        """What trackers get."""
        return {
            f"spike/{self.name}": self.value,
            f"spike/{self.name}_deviations": self.deviations,
        }

    def line(self, places: Sequence[Place]) -> dict[str, Any]:
        """What metrics.jsonl gets besides `step` and `time`."""
        rows = [{"shard": s, "first": a, "last": b} for s, a, b in places[:KEPT_PLACES]]
        left_out = len(places) - len(rows)
        return {
            **self.numbers(),
            "usual": list(self.usual),
            "rows": rows,
            **({"rows_left_out": left_out} if left_out else {}),
        }


class Monitor:
    """Takes the numbers of each step, in order.

    Args:
        threshold: a spike is so many deviations above the median, or more.
        state: what `state` gave, to go on from there.
    """

    def __init__(self, threshold: float, state: Mapping[str, Any] | None = None) -> None:
        self.threshold = threshold
        state = state or {}
        self._before = {name: list(state.get(name, ())) for name in NAMES}
        self._high = set(state.get("high", ()))

    def take(self, step: int, values: Mapping[str, float]) -> list[Spike]:
        """The spikes of a step. Of several in a row, which is a level, only the first is one."""
        found = []
        for name in NAMES:
            value, before = values[name], self._before[name]
            if not math.isfinite(value):  # a step that float16 skipped
                continue
            spike = self._judge(step, name, value)
            if spike is not None and name not in self._high:
                found.append(spike)
            (self._high.discard if spike is None else self._high.add)(name)
            before.append(value)
            del before[:-WINDOW]
        return found

    def _judge(self, step: int, name: str, value: float) -> Spike | None:
        before = self._before[name]
        if len(before) < LEAST:
            return None
        ordered = sorted(before)
        median, least = _scaled(name, statistics.median(ordered)), LEAST_SPREAD[name]
        least *= median if name == "loss" else 1
        above = _scaled(name, value) - median
        if above < self.threshold * least:  # nearly always, and the rest need not be known
            return None
        spread = NORMAL * statistics.median(abs(_scaled(name, x) - median) for x in before)
        deviations = above / max(spread, least, TINY)
        if deviations < self.threshold:
            return None
        cut = len(ordered) // 20
        return Spike(step, name, value, deviations, (ordered[cut], ordered[-1 - cut]))

    def state(self) -> dict[str, Any]:
        """All that the next step is compared with, as JSON holds it."""
        return {**{name: list(self._before[name]) for name in NAMES}, "high": sorted(self._high)}


def _scaled(name: str, value: float) -> float:
    """As distances are measured."""
    return value if name == "loss" else math.log(max(value, TINY))
