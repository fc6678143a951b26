"""Which windows of a stream a host takes, step by step, and where each lies in its step's array."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np


class Stretch(NamedTuple):
    """Windows that are neighbours in the stream and in their step's array."""

    step: int
    """The reader's, from 0."""
    slot: int
    """Where the first one lies in the step's array [n, S + 1]."""
    window: int
    """The first one's number in its epoch."""
    num_windows: int


class RowRange(NamedTuple):
    """Rows of a batch that follow each other: `row` to row + num_rows - 1."""

    row: int
    slot: int
    """How many of this host's rows come before them in the batch's array."""
    num_rows: int


class Demand(Protocol):
    """What a reader is asked for. Steps are the reader's own, from 0."""

    @property
    def span(self) -> range:
        """Of the windows of the endless stream; those of one step follow those before it."""

    @property
    def num_steps(self) -> int: ...

    def numbers(self, step: int) -> tuple[np.ndarray, int]:
        """(int64 [n], the windows of a step; where the step ends in the stream)."""

    def held(self, numbers_n: np.ndarray) -> np.ndarray:
        """Which of these windows are wanted: bool [n]."""

    def size(self, step: int) -> int:
        """Windows of a step's array."""

    def within(self, step: int) -> np.ndarray | slice:
        """The entries of a step's array that are in the span; the last step may go beyond it."""

    def below(self, windows: np.ndarray) -> np.ndarray:
        """The first window of the span that is not below each of these of the stream."""

    def stretches(self, near: range, before: int) -> Iterator[Stretch]:
        """The wanted windows in `near`, which counts from the span's start, and `before` more is
        the number in the epoch."""


@dataclass(frozen=True)
class Wanted:
    """The windows of `span` that lie on `rows` of their batch.

    A step is `per_step` windows, micro-batches of `batch_size`; span.start is a multiple of
    batch_size. Where `spread_over` is a number W, window i of the span, which begins with 0, is not
    window i of the stream but floor(i · W / len(span)): the span is spread over the first W.
    """

    span: range
    per_step: int
    batch_size: int
    rows: np.ndarray
    spread_over: int | None = None

    @property
    def num_steps(self) -> int:
        return -(-len(self.span) // self.per_step)

    def size(self, step: int) -> int:
        return self.per_step // self.batch_size * len(self.rows)

    def held(self, numbers_n: np.ndarray) -> np.ndarray:
        is_held = np.zeros(self.batch_size, bool)
        is_held[self.rows] = True
        return is_held[numbers_n % self.batch_size]

    def ranges(self) -> list[RowRange]:
        """The rows, cut where they do not count up by one."""
        firsts = np.concatenate([[0], np.flatnonzero(np.diff(self.rows) != 1) + 1])
        counts = np.diff(firsts, append=len(self.rows)).tolist()
        ranges = zip(self.rows[firsts].tolist(), firsts.tolist(), counts, strict=True)
        return [RowRange(*rows) for rows in ranges]

    def window(self, i: int) -> int:
        """The window of the stream that window i of the span is."""
        return i if self.spread_over is None else i * self.spread_over // len(self.span)

    def below(self, windows: np.ndarray) -> np.ndarray:
        if self.spread_over is not None:
            windows = -(-windows * len(self.span) // self.spread_over)
        return np.clip(windows, self.span.start, self.span.stop)

    def numbers(self, step: int) -> tuple[np.ndarray, int]:
        start = self.span.start + step * self.per_step
        g_n = np.arange(start, start + self.per_step, self.batch_size)[:, None] + self.rows
        return g_n.reshape(-1), start + self.per_step

    def within(self, step: int) -> np.ndarray | slice:
        g_n, stop = self.numbers(step)
        return slice(None) if stop <= self.span.stop else g_n < self.span.stop

    def stretches(self, near: range, before: int) -> Iterator[Stretch]:
        batches_per_step, ranges = self.per_step // self.batch_size, self.ranges()
        for batch in range(near.start // self.batch_size, -(-near.stop // self.batch_size)):
            step, micro_batch = divmod(batch, batches_per_step)
            for rows in ranges:
                start = batch * self.batch_size + rows.row
                first, stop = max(near.start, start), min(near.stop, start + rows.num_rows)
                if first < stop:
                    slot = micro_batch * len(self.rows) + rows.slot + first - start
                    if self.spread_over is None:
                        yield Stretch(step, slot, first + before, stop - first)
                    else:
                        for i in range(first, stop):
                            yield Stretch(step, slot + i - first, self.window(i), 1)


@dataclass(frozen=True)
class Share:
    """What a mixture takes of one source: the windows of `span`, of the source's own stream, whose
    places in the mixture lie on rows that this host holds.

    Its steps are not those of training, of which many may have no window of the source, but blocks
    of `block` windows; the array of a step has those of the host, in the order of the stream.
    """

    span: range
    block: int
    places: Callable[[np.ndarray], np.ndarray]
    """Of windows of the source in the mixture."""
    is_held: np.ndarray
    """Which rows of a batch are the host's: bool [batch_size]."""

    @property
    def num_steps(self) -> int:
        return -(-len(self.span) // self.block)

    def numbers(self, step: int) -> tuple[np.ndarray, int]:
        start = self.span.start + step * self.block
        stop = min(start + self.block, self.span.stop)
        numbers = np.arange(start, stop)
        return numbers[self.held(numbers)], stop

    def held(self, numbers_n: np.ndarray) -> np.ndarray:
        return self.is_held[self.places(numbers_n) % len(self.is_held)]

    def size(self, step: int) -> int:
        return len(self.numbers(step)[0])

    def within(self, step: int) -> np.ndarray | slice:
        return slice(None)

    def below(self, windows: np.ndarray) -> np.ndarray:
        return np.clip(windows, self.span.start, self.span.stop)

    def stretches(self, near: range, before: int) -> Iterator[Stretch]:
        first = near.start // self.block * self.block  # the slots of its block count from there
        i_n = np.arange(first, near.stop)
        held = self.held(i_n + self.span.start)
        held_before = np.cumsum(held) - held
        steps = i_n // self.block
        slots = held_before - held_before[(steps - steps[0]) * self.block]
        taken = np.flatnonzero(held & (i_n >= near.start))
        ends = np.flatnonzero((np.diff(taken) != 1) | (np.diff(steps[taken]) != 0)) + 1
        for run in np.split(taken, ends):
            if len(run):
                at = run[0]
                yield Stretch(int(steps[at]), int(slots[at]), int(i_n[at]) + before, len(run))
