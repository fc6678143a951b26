"""Windows in the order of the steps; threads decode their row groups ahead of time.

The stream of tokens is cut twice, independently: by the shards into row groups, and by seq_len into
windows, which the steps take in turn.

    row groups  |    0    |      1      |  2  |      3      |   decoded once, one after another
    windows     |  0  |  1  |  2  |  3  |  4  |  5  |  6  | 7   S tokens and the next one
    rows           0     1     0     1     0     1     0        of a batch of 2
    steps       |     0     |     1     |     2     |     3     written by the row groups they touch

A host that holds only row 1 wants windows 1, 3, 5, …; a row group gives it the parts that it has,
stretch by stretch. Where a window goes on in the next row group, each writes its part.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from light_jax.data.stream import TokenStream, lay
from light_jax.data.wanted import Demand, Stretch

STEPS_AHEAD = 4
AHEAD_BYTES = 256 * 2**20  # of windows that lie ready, but always one row group's


@dataclass(frozen=True)
class RowGroup:
    """A row group, and the windows of this host that it holds tokens of."""

    epoch: int
    place: int
    """In the epoch's order."""
    stretches: list[Stretch]

    @property
    def first_step(self) -> int:
        return self.stretches[0].step

    @property
    def last_step(self) -> int:
        return self.stretches[-1].step


class WindowReader:
    """The windows that are wanted, int32 [n, S + 1], step by step, from a sequential stream.

    The thread that decodes a row group writes its tokens into the steps' arrays at once, while they
    are in its cache, and frees the row group. So memory holds windows, each token once, and no
    decoded row groups that several steps share. A step is ready when all its row groups are
    written. The consumer's thread does the bookkeeping, so nothing here needs a lock.
    """

    def __init__(
        self,
        stream: TokenStream,
        wanted: Demand,
        num_workers: int,
        pool: Executor | None = None,
        ahead_bytes: int = AHEAD_BYTES,
    ) -> None:
        """`pool` are threads that several readers share; the first that is closed stops them."""
        self._stream, self._wanted = stream, wanted
        self._groups = _row_groups(stream, wanted)
        if stream.is_remote:
            self._groups = _fetching_ahead(stream, self._groups)
        self._closed = threading.Event()
        self._next_group = next(self._groups, None)
        # A ring of steps: row groups come in the order of the stream, so steps are completed in
        # order too, and what a row group needs is the few arrays from its first step on. The ring
        # begins with the step that `next()` gives; arrays are made at its far end when a row group
        # reaches there, and are complete when they leave it. Only a last step that ends before the
        # rows of this host has no array in it.
        self._steps: deque[np.ndarray] = deque()
        self._bytes, self._ahead_bytes = 0, ahead_bytes  # of the ring
        self._laying: deque[tuple[RowGroup, Future[None]]] = deque()
        self._step, self._end = 0, wanted.num_steps
        self._workers = num_workers
        self._pool = threads(num_workers) if pool is None else pool
        self._finalizer = weakref.finalize(self, cancel, self._pool)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        if self._step >= self._end:
            self.close()
            raise StopIteration
        while self._is_due(self._next_group):
            self._submit()
        try:
            for group, laid in self._laying:
                if group.first_step > self._step:
                    break
                laid.result()
        except BaseException:
            self.close()
            raise
        while self._laying and self._laying[0][0].last_step <= self._step:
            self._laying.popleft()
        windows = self._steps.popleft() if self._steps else self._empty(self._step)
        self._bytes = max(0, self._bytes - windows.nbytes)
        windows = windows[self._wanted.within(self._step)]
        self._step += 1
        return windows

    def close(self) -> None:
        """Stop the threads and wait for them."""
        self._step = self._end
        self._closed.set()
        self._laying.clear()
        self._steps.clear()
        self._finalizer()
        self._pool.shutdown(wait=True)

    def _is_due(self, group: RowGroup | None) -> bool:
        """Whether the step in hand needs this row group, or it is one of those to read ahead."""
        if group is None:
            return False
        if group.first_step <= self._step:
            return True
        if not self._workers or self._bytes > self._ahead_bytes:
            return False
        ahead = sum(other.first_step > self._step for other, _ in self._laying)
        return group.first_step <= self._step + STEPS_AHEAD or ahead < self._workers

    def _submit(self) -> None:
        group, self._next_group = self._next_group, next(self._groups, None)
        assert group is not None
        while (step := self._step + len(self._steps)) <= group.last_step:
            self._steps.append(self._empty(step))
            self._bytes += self._steps[-1].nbytes
        first = group.first_step - self._step
        steps = [self._steps[n] for n in range(first, group.last_step - self._step + 1)]
        laid = self._pool.submit(_lay_group, self._stream, group, steps, self._closed)
        self._laying.append((group, laid))

    def _empty(self, step: int) -> np.ndarray:
        return np.empty((self._wanted.size(step), self._stream.seq_len + 1), np.int32)


def _lay_group(
    stream: TokenStream, group: RowGroup, steps: list[np.ndarray], closed: threading.Event
) -> None:
    """`steps` are the arrays of the steps first_step to last_step of the row group."""
    stream.fetch(group.epoch, group.place, closed)
    start, tokens = stream.read(group.epoch, group.place)
    for step, slot, window, num_windows in group.stretches:
        lay(tokens, start, window, steps[step - group.first_step][slot : slot + num_windows])


def _row_groups(stream: TokenStream, wanted: Demand) -> Iterator[RowGroup]:
    """The row groups that hold tokens of a wanted window, in the order of the stream."""
    W, S, span = len(stream), stream.seq_len, wanted.span
    for epoch in range(span.start // W, -(-span.stop // W)):
        starts = stream.epoch(epoch).starts
        first = np.maximum((starts[:-1] + S - 1) // S - 1, 0)  # a window takes S + 1 tokens
        last = np.minimum((starts[1:] - 1) // S, W - 1)
        low = wanted.below(epoch * W + first) - span.start
        high = wanted.below(epoch * W + last + 1) - span.start
        before = span.start - epoch * W  # window of the span + before = window of the epoch
        for place in np.flatnonzero(high > low).tolist():
            near = range(low[place].item(), high[place].item())
            stretches = list(wanted.stretches(near, before))
            if stretches:
                yield RowGroup(epoch, place, stretches)


def _fetching_ahead(stream: TokenStream, groups: Iterator[RowGroup]) -> Iterator[RowGroup]:
    """The same row groups. With the first of a shard, the next shard begins to be fetched."""
    coming: deque[RowGroup] = deque()
    last: str | None = None
    while group := coming.popleft() if coming else next(groups, None):
        here = stream.shard_of(group.epoch, group.place)
        if here != last:
            last = here
            stream.fetch_ahead(group.epoch, [group.place])
            at = next((g for g in coming if stream.shard_of(g.epoch, g.place) != here), None)
            while at is None and (further := next(groups, None)) is not None:
                coming.append(further)
                if stream.shard_of(further.epoch, further.place) != here:
                    at = further
            if at is not None:
                stream.fetch_ahead(at.epoch, [at.place])
        yield group


class _Inline(Executor):
    """An executor without threads."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def threads(num_workers: int) -> Executor:
    """Threads that decode; without any, what is submitted is done at once."""
    if not num_workers:
        return _Inline()
    return ThreadPoolExecutor(num_workers, thread_name_prefix="light-data")


def cancel(pool: Executor) -> None:
    """Drop what the threads have not begun."""
    pool.shutdown(wait=False, cancel_futures=True)
