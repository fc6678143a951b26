"""Windows in the order of the steps, their row groups decoded ahead of need in threads."""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from light_jax.data.stream import TokenStream

DEPTH = 4  # tasks that lie ready: a step each, or more where steps are small
TASK_TOKENS = 2**18
AHEAD_BYTES = 256 * 2**20  # row groups decoded beyond these tasks, but always one

Place = tuple[int, int]
"""(epoch, place in the epoch's order): where a row group stands in the endless stream."""


class WindowReader:
    """The windows of `span` that lie on `rows` of their batch, int32 [n, S + 1], step by step.

    A step is `per_step` windows, micro-batches of `batch_size`; span.start is a multiple of
    batch_size. Row groups are decoded by one pool and cut into steps by another thread, so that a
    long decoding never holds up a step whose row groups are there. The consumer's thread does all
    the bookkeeping: nothing here needs a lock.
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
        self._stream, self._rows = stream, rows
        self._start, self._stop = span.start, span.stop
        self._per_step, self._batch_size = per_step, batch_size
        self._windows_held = per_step // batch_size * len(rows)
        self._coming = _places(stream, span, batch_size, rows)
        self._decoding: dict[Place, Future[np.ndarray]] = {}
        self._last: Place = (-1, -1)
        self._tasks: deque[Future[list[np.ndarray]]] = deque()
        self._ready: deque[np.ndarray] = deque()
        self._depth = DEPTH if num_workers else 1
        self._ahead = num_workers
        self._decoder = _pool(num_workers, "decode")
        self._assembler = _pool(min(1, num_workers), "assemble")
        self._finalizer = weakref.finalize(self, _cancel, self._decoder, self._assembler)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        if not self._ready:
            while len(self._tasks) < self._depth and self._start < self._stop:
                self._submit_steps()
            self._look_ahead()
            if not self._tasks:
                self.close()
                raise StopIteration
            try:
                self._ready.extend(self._tasks.popleft().result())
            except BaseException:
                self.close()
                raise
        return self._ready.popleft()

    def close(self) -> None:
        """Stop the threads; they are gone when this returns."""
        self._start = self._stop
        self._tasks.clear()
        self._ready.clear()
        self._finalizer()
        for pool in (self._decoder, self._assembler):
            pool.shutdown(wait=True)

    def _submit_steps(self) -> None:
        """Have the next step cut, and those behind it that need no other row group than it does.

        So an error in the shards is raised by the step that it befalls, and by none before it.
        """
        start, count = self._start, 1
        groups: dict[Place, Future[np.ndarray]] = {}
        g_n = self._windows(start, start + self._per_step)
        if g_n.size:
            first, self._last = self._ends(int(g_n.min()), int(g_n.max()))
            self._decoding = {at: group for at, group in self._decoding.items() if at >= first}
            while next(reversed(self._decoding), (-1, -1)) < self._last and self._submit_group():
                pass
            groups = {at: group for at, group in self._decoding.items() if at <= self._last}
            most = TASK_TOKENS // (self._windows_held * self._stream.seq_len)
            count = max(1, min(most, (self._whole(self._last) - start) // self._per_step))
            count = min(count, -(-(self._stop - start) // self._per_step))
            g_n = self._windows(start, start + count * self._per_step)
        self._start += count * self._per_step
        cuts = [self._windows_held * step for step in range(count + 1)]
        self._tasks.append(self._assembler.submit(_assemble, self._stream, g_n, groups, cuts))

    def _windows(self, start: int, stop: int) -> np.ndarray:
        g_n = (np.arange(start, stop, self._batch_size)[:, None] + self._rows).reshape(-1)
        return g_n[g_n < self._stop]

    def _ends(self, first: int, last: int) -> tuple[Place, Place]:
        """The places of the first and the last row group of windows `first` to `last`."""
        (epoch, window), (end, final) = (divmod(g, len(self._stream)) for g in (first, last))
        S = self._stream.seq_len
        begins = self._stream.epoch(epoch).places(window * S, window * S + 1)
        ends = self._stream.epoch(end).places(final * S, (final + 1) * S + 1)
        return (epoch, begins[0]), (end, ends[-1])

    def _whole(self, place: Place) -> int:
        """How many windows of the stream end within this row group or before it."""
        W, starts = len(self._stream), self._stream.epoch(place[0]).starts
        return place[0] * W + min(W, (int(starts[place[1] + 1]) - 1) // self._stream.seq_len)

    def _submit_group(self) -> bool:
        place = next(self._coming, None)
        if place is None:
            return False
        self._decoding[place] = self._decoder.submit(self._stream.fetch, *place)
        return True

    def _look_ahead(self) -> None:
        """Decode beyond the steps in hand: a row group per thread, unless they are very large."""
        while True:
            beyond = [place for place in self._decoding if place > self._last]
            size = sum(self._bytes(place) for place in beyond)
            if len(beyond) >= self._ahead or (beyond and size > AHEAD_BYTES):
                return
            if not self._submit_group():
                return

    def _bytes(self, place: Place) -> int:
        starts = self._stream.epoch(place[0]).starts
        return 4 * int(starts[place[1] + 1] - starts[place[1]])


def _assemble(
    stream: TokenStream, g_n: np.ndarray, groups: dict[Place, Future[np.ndarray]], cuts: list[int]
) -> list[np.ndarray]:
    windows = stream.windows(g_n, lambda epoch, place: groups[epoch, place].result())
    return [windows[low:high] for low, high in itertools.pairwise(cuts)]


def _places(stream: TokenStream, span: range, batch_size: int, rows: np.ndarray) -> Iterator[Place]:
    """The row groups that hold a window of `span` on one of `rows`, in the order of the stream."""
    W, S = len(stream), stream.seq_len
    held_before = np.cumsum(np.isin(np.arange(-1, batch_size), rows))  # [r]: rows below r

    def held(g: np.ndarray) -> np.ndarray:
        """How many of the windows below g lie on `rows`."""
        return g // batch_size * len(rows) + held_before[g % batch_size]

    for number in range(span.start // W, -(-span.stop // W)):
        starts = stream.epoch(number).starts
        first = np.maximum((starts[:-1] + S - 1) // S - 1, 0)  # a window takes S + 1 tokens
        last = np.minimum((starts[1:] - 1) // S, W - 1)
        low = np.clip(number * W + first, span.start, span.stop)
        high = np.clip(number * W + last + 1, span.start, span.stop)
        for place in np.flatnonzero((high > low) & (held(high) > held(low))):
            yield number, int(place)


class _Inline(Executor):
    """An executor without threads."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _pool(num_workers: int, name: str) -> Executor:
    if not num_workers:
        return _Inline()
    return ThreadPoolExecutor(num_workers, thread_name_prefix=f"light-{name}")


def _cancel(*pools: Executor) -> None:
    for pool in pools:
        pool.shutdown(wait=False, cancel_futures=True)
