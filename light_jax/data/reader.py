"""Windows in the order of the steps, their row groups decoded ahead of need in threads."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from light_jax.data.stream import TokenStream, lay

STEPS_AHEAD = 4
AHEAD_BYTES = 256 * 2**20  # of windows that lie ready, but always one row group's

Run = tuple[int, int, int, int]
"""(step, slot, window of the epoch, count): windows that are neighbours in the stream and in their
step. Slots are counted through all steps."""


@dataclass(frozen=True)
class Part:
    """A row group, and the windows of this host that it holds tokens of."""

    epoch: int
    place: int  # in the epoch's order
    first_step: int
    last_step: int
    runs: list[Run]


class WindowReader:
    """The windows of `span` that lie on `rows` of their batch, int32 [n, S + 1], step by step.

    A step is `per_step` windows, micro-batches of `batch_size`; span.start is a multiple of
    batch_size. The thread that decodes a row group lays its tokens into the arrays of the steps at
    once, while they are in its cache, and lets go of it; a step is ready when all its row groups
    have been laid. The consumer's thread does all the bookkeeping: nothing here needs a lock.
    """

    def __init__(
        self,
        stream: TokenStream,
        span: range,
        per_step: int,
        batch_size: int,
        rows: np.ndarray,
        num_workers: int,
    ) -> None:
        self._stream, self._span, self._rows = stream, span, rows
        self._per_step, self._batch_size = per_step, batch_size
        self._shape = (per_step // batch_size * len(rows), stream.seq_len + 1)
        self._parts = _parts(stream, span, per_step, batch_size, rows)
        self._next_part = next(self._parts, None)
        self._laying: deque[tuple[Part, Future[None]]] = deque()
        self._steps: deque[np.ndarray] = deque()  # from self._step on, as far as parts reach
        self._step, self._end = 0, -(-len(span) // per_step)
        self._workers = num_workers
        self._pool = _pool(num_workers)
        self._finalizer = weakref.finalize(self, _cancel, self._pool)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        if self._step >= self._end:
            self.close()
            raise StopIteration
        while self._is_wanted(self._next_part):
            self._submit()
        try:
            for part, laid in self._laying:
                if part.first_step > self._step:
                    break
                laid.result()
        except BaseException:
            self.close()
            raise
        while self._laying and self._laying[0][0].last_step <= self._step:
            self._laying.popleft()
        windows = self._steps.popleft() if self._steps else self._empty()
        start = self._span.start + self._step * self._per_step
        self._step += 1
        if start + self._per_step <= self._span.stop:
            return windows
        g_n = np.arange(start, start + self._per_step, self._batch_size)[:, None] + self._rows
        return windows[g_n.reshape(-1) < self._span.stop]

    def close(self) -> None:
        """Stop the threads; they are gone when this returns."""
        self._step = self._end
        self._laying.clear()
        self._steps.clear()
        self._finalizer()
        self._pool.shutdown(wait=True)

    def _is_wanted(self, part: Part | None) -> bool:
        """Whether the step in hand needs this part, or it is one of those to read ahead."""
        if part is None:
            return False
        if part.first_step <= self._step:
            return True
        if not self._workers or 4 * len(self._steps) * math.prod(self._shape) > AHEAD_BYTES:
            return False
        ahead = sum(part.first_step > self._step for part, _ in self._laying)
        return part.first_step <= self._step + STEPS_AHEAD or ahead < self._workers

    def _submit(self) -> None:
        part, self._next_part = self._next_part, next(self._parts, None)
        assert part is not None
        while self._step + len(self._steps) <= part.last_step:
            self._steps.append(self._empty())
        first = part.first_step - self._step
        steps = [self._steps[n] for n in range(first, part.last_step - self._step + 1)]
        self._laying.append((part, self._pool.submit(_lay_part, self._stream, part, steps)))

    def _empty(self) -> np.ndarray:
        return np.empty(self._shape, np.int32)


def _lay_part(stream: TokenStream, part: Part, steps: list[np.ndarray]) -> None:
    start, tokens = stream.read(part.epoch, part.place)
    for step, slot, window, count in part.runs:
        windows = steps[step - part.first_step]
        slot -= step * len(windows)
        lay(tokens, start, window, windows[slot : slot + count])


def _parts(
    stream: TokenStream, span: range, per_step: int, batch_size: int, rows: np.ndarray
) -> Iterator[Part]:
    """The row groups that hold a window of `span` on one of `rows`, in the order of the stream."""
    W, S = len(stream), stream.seq_len
    blocks = _blocks(rows)
    for epoch in range(span.start // W, -(-span.stop // W)):
        starts = stream.epoch(epoch).starts
        first = np.maximum((starts[:-1] + S - 1) // S - 1, 0)  # a window takes S + 1 tokens
        last = np.minimum((starts[1:] - 1) // S, W - 1)
        low = np.clip(epoch * W + first, span.start, span.stop) - span.start
        high = np.clip(epoch * W + last + 1, span.start, span.stop) - span.start
        before = span.start - epoch * W
        for place in np.flatnonzero(high > low).tolist():
            runs = [
                (batch * batch_size // per_step, batch * len(rows) + slot, g + before, count)
                for batch, slot, g, count in _runs(
                    low[place].item(), high[place].item(), batch_size, blocks
                )
            ]
            if runs:
                yield Part(epoch, place, runs[0][0], runs[-1][0], runs)


def _runs(
    low: int, high: int, batch_size: int, blocks: list[tuple[int, int, int]]
) -> Iterator[Run]:
    """Windows [low, high) that lie on the rows of `blocks`, micro-batch by micro-batch."""
    for batch in range(low // batch_size, -(-high // batch_size)):
        for row, slot, count in blocks:
            start = batch * batch_size + row
            first, stop = max(low, start), min(high, start + count)
            if first < stop:
                yield batch, slot + first - start, first, stop - first


def _blocks(rows: np.ndarray) -> list[tuple[int, int, int]]:
    """(row, slot, count): the rows cut where they do not count up by one."""
    firsts = np.concatenate([[0], np.flatnonzero(np.diff(rows) != 1) + 1])
    counts = np.diff(firsts, append=len(rows))
    return list(zip(rows[firsts].tolist(), firsts.tolist(), counts.tolist(), strict=True))


class _Inline(Executor):
    """An executor without threads."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _pool(num_workers: int) -> Executor:
    if not num_workers:
        return _Inline()
    return ThreadPoolExecutor(num_workers, thread_name_prefix="light-data")


def _cancel(pool: Executor) -> None:
    pool.shutdown(wait=False, cancel_futures=True)
