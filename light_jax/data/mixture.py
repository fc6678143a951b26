"""Which source each window of a mixture comes from: a function of the weights alone.

The weights are taken as the decimals that are written, divided by their sum and reduced, so that
source s has the share a_s / D in whole numbers, and a period of D windows holds a_s of source s.
A table of one period answers for every window, however far.

The order within a period keeps each prefix of n windows within one window of the shares,
|c_s(n) - n·a_s / D| < 1 for every n and s (Tijdeman 1980, "The chairman assignment problem", asks
for such sequences; the way here is that of Steiner and Yeomans 1993, "Level schedules for
mixed-model, just-in-time processes"). With w = a_s / D, the m-th window of source s (from 1) keeps
that law if and only if its place n (from 1) is

    at least  r = floor((m - 1) / w) + 1   (the first n with m - n·w < 1)
    at most   d = ceil(m / w)              (at d - 1, still without it, (d - 1)·w - (m - 1) < 1)

So each window is a task of unit length with a release and a deadline. In places a to b there are
b - a + 1 slots, and the tasks of source s that must lie in them are those with r >= a and d <= b,
so (a - 1)·w + 1 <= m <= b·w, which are at most (b - a + 1)·w. Over all sources that is at most
b - a + 1: by Hall's theorem there is a schedule that meets every deadline. Earliest deadline first
among what is released finds it (Horn 1974), and leaves no slot empty, since the D tasks of a period
fill its D slots. After a period every count is its share exactly, and the next one is the same.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

LONGEST_PERIOD = 10**6
"""Windows. Decimals of six places that add up to 1 have no longer one."""


class Mixture:
    """The schedule of sources with these weights; see the module's docstring.

    `counts` are the a_s, and `period` is D. Sources are numbered as the weights come.

    Raises:
        ValueError: the weights have no common unit of a LONGEST_PERIOD-th of their sum; the
            message has no subject, and proposes weights that have.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.counts = proportions(weights)
        self.period = sum(self.counts)
        if self.period > LONGEST_PERIOD:
            raise ValueError(_too_fine(self.counts))
        self._source, self._rank, self._places = _schedule(self.counts)

    @property
    def shares(self) -> list[Fraction]:
        return [Fraction(count, self.period) for count in self.counts]

    def at(self, windows_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which source each window comes from, its number in that source's own stream):
        int64 [n] -> int64 [n], int64 [n]."""
        periods, places = np.divmod(np.asarray(windows_n, np.int64), self.period)
        sources = self._source[places].astype(np.int64)
        per_period = np.array(self.counts, np.int64)[sources]
        return sources, periods * per_period + self._rank[places]

    def places(self, source: int, numbers_n: np.ndarray) -> np.ndarray:
        """Where windows of one source come in the mixture: the inverse of `at`."""
        periods, ranks = np.divmod(np.asarray(numbers_n, np.int64), self.counts[source])
        return periods * self.period + self._places[source][ranks]

    def taken(self, windows: int) -> list[int]:
        """How many of the first `windows` windows come from each source."""
        periods, place = divmod(windows, self.period)
        return [
            periods * count + int(places.searchsorted(place))
            for count, places in zip(self.counts, self._places, strict=True)
        ]


def proportions(weights: Sequence[float]) -> list[int]:
    """The least whole numbers in the ratio of the weights.

    A float is taken as the shortest decimal that it is read from: 0.7 is 7/10.
    """
    exact = [Fraction(repr(float(weight))) for weight in weights]
    scale = math.lcm(*(share.denominator for share in exact))
    whole = [int(share * scale) for share in exact]
    divisor = math.gcd(*whole)
    return [number // divisor for number in whole]


@functools.lru_cache(maxsize=4)
def _scheduled(counts: tuple[int, ...]) -> np.ndarray:
    period = sum(counts)
    order = np.empty(period, np.int32)
    ready: list[tuple[int, int, int]] = []  # (deadline, source, which of its windows)
    coming = [(1, source, 1) for source in range(len(counts))]  # (release, …): a heap as it stands
    for place in range(1, period + 1):
        while coming and coming[0][0] <= place:
            _, source, m = heapq.heappop(coming)
            heapq.heappush(ready, (-(-m * period // counts[source]), source, m))
        deadline, source, m = heapq.heappop(ready)
        assert place <= deadline
        order[place - 1] = source
        if m < counts[source]:
            heapq.heappush(coming, (m * period // counts[source] + 1, source, m + 1))
    return order


def _schedule(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """(the source of each place of a period, how many of the same come before it, the places of
    each source)."""
    order = _scheduled(tuple(counts))
    ranks = np.empty(len(order), np.int64)
    places = [np.flatnonzero(order == source) for source in range(len(counts))]
    for of_source in places:
        ranks[of_source] = np.arange(len(of_source))
    return order, ranks, places


def _too_fine(counts: Sequence[int]) -> str:
    """What is wrong with proportions of too long a period, and near ones that are not."""
    total, unit = sum(counts), LONGEST_PERIOD
    near = [max(1, round(Fraction(count * unit, total))) for count in counts]
    near[near.index(max(near))] += unit - sum(near)
    divisor = math.gcd(*near)
    shown = ", ".join(str(number // divisor) for number in near)
    return (
        f"have no common unit of a millionth of their sum: in whole numbers they add up to "
        f"10^{math.floor(math.log10(total))} or more, and must to at most {unit:,}; round them, "
        f"to {shown} for example"
    )
