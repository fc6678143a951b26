"""Windows of a shuffled stream in the order of the steps; threads decode the next pool meanwhile.

The windows of a pool (order.py) lie in a few stretches of the shards and come in any order. So the
row groups of a pool are decoded one after another, each writes its windows to their places, and the
steps take theirs when all are there.

    pool 0    | decoded |  its steps                      |
    pool 1              |  decoded, in half of these  ... |  its steps          |

Memory holds two pools at most, of each the windows of this host.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from light_jax.data.reader import cancel, threads
from light_jax.data.stream import TokenStream, lay
from light_jax.data.wanted import Demand

PACE = 2  # the next pool is decoded in 1/PACE of the steps of the one before


class Part(NamedTuple):
    """A row group, and which of a pool's windows, sorted, it holds tokens of: low to high - 1."""

    place: int
    low: int
    high: int


class Pool:
    """The windows of a pool that a host wants, and the row groups that they are read from.

    `span` is that of the pool in the endless stream, cut to what is wanted. `numbers` (int64 [m])
    are the host's windows in it, ascending, and `windows` (int32 [m, S + 1]) their tokens.
    """

    def __init__(self, stream: TokenStream, epoch: int, span: range, wanted: Demand) -> None:
        S, self._epoch = stream.seq_len, epoch
        self.span = span
        numbers = np.arange(span.start, span.stop)
        self.numbers = numbers[wanted.held(numbers)]
        in_epoch = stream.unshuffled(self.numbers) - epoch * len(stream)
        self._by_place = np.argsort(in_epoch)
        self._sorted = in_epoch[self._by_place]
        self.windows = np.empty((len(self.numbers), S + 1), np.int32)
        starts = stream.epoch(epoch).starts
        low = self._sorted.searchsorted((starts[:-1] + S - 1) // S - 1)  # it takes S + 1 tokens
        high = self._sorted.searchsorted((starts[1:] - 1) // S, side="right")
        self.parts = deque(
            Part(place, int(low[place]), int(high[place]))
            for place in np.flatnonzero(high > low).tolist()
        )
        self.num_parts = len(self.parts)

    def fetch_ahead(self, stream: TokenStream) -> None:
        """Begin to fetch the shards of the pool that are not here."""
        stream.fetch_ahead(self._epoch, [part.place for part in self.parts])

    def lay(self, stream: TokenStream, part: Part, closed: threading.Event) -> None:
        """Decode a row group, and write what it holds of each window."""
        stream.fetch(self._epoch, part.place, closed)
        start, tokens = stream.read(self._epoch, part.place)
        S = stream.seq_len
        windows, out = self._sorted[part.low : part.high], self._by_place[part.low : part.high]
        at = windows * S - start  # where they begin in `tokens`
        first, stop = at.searchsorted([0, tokens.size - S]).tolist()  # those that lie in it whole
        if first < stop:
            self.windows[out[first:stop]] = sliding_window_view(tokens, S + 1)[at[first:stop]]
        for i in (*range(first), *range(max(first, stop), len(at))):
            lay(tokens, start, int(windows[i]), self.windows[out[i] : out[i] + 1])


class PoolReader:
    """The windows that are wanted, int32 [n, S + 1], step by step, from a shuffled stream."""

    def __init__(
        self,
        stream: TokenStream,
        wanted: Demand,
        num_workers: int,
        pool: Executor | None = None,
    ) -> None:
        """`pool` are threads that several readers share; the first that is closed stops them."""
        self._stream, self._wanted = stream, wanted
        self._steps = iter(range(wanted.num_steps))
        self._pools = _pools(stream, wanted)
        self._pool = next(self._pools, None)
        self._next: Pool | None = None
        self._closed = threading.Event()
        if self._pool is not None and stream.is_remote:
            self._pool.fetch_ahead(stream)
        self._laying: deque[tuple[Pool, Future[None]]] = deque()
        self._threads = threads(num_workers) if pool is None else pool
        self._finalizer = weakref.finalize(self, cancel, self._threads)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        step = next(self._steps, None)
        if step is None:
            self.close()
            raise StopIteration
        try:
            return self._take(*self._wanted.numbers(step))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the threads and wait for them."""
        self._steps = iter(())
        self._pool = self._next = None
        self._closed.set()
        self._laying.clear()
        self._finalizer()
        self._threads.shutdown(wait=True)

    def _take(self, g_n: np.ndarray, stop: int) -> np.ndarray:
        """The windows of a step, which ends before window `stop` of the stream."""
        out = np.empty((len(g_n), self._stream.seq_len + 1), np.int32)
        while True:
            pool = self._pool
            assert pool is not None
            self._finish(pool)
            here = (pool.span.start <= g_n) & (g_n < pool.span.stop)
            found = pool.windows[pool.numbers.searchsorted(g_n[here])]
            if len(found) == len(out):
                out = found
            else:
                out[here] = found
            if stop < pool.span.stop:
                self._read_ahead(pool, stop)
                return out
            self._pool = self._next or next(self._pools, None)
            self._next = None
            if stop == pool.span.stop:
                return out

    def _finish(self, pool: Pool) -> None:
        """Wait until all windows of the pool are there."""
        self._submit(pool, pool.num_parts)
        while self._laying and self._laying[0][0] is pool:
            self._laying[0][1].result()
            self._laying.popleft()

    def _read_ahead(self, pool: Pool, stop: int) -> None:
        """Decode as much of the next pool as is due where the steps have come to `stop`."""
        if self._next is None:
            self._next = next(self._pools, None)
            if self._next is not None and self._stream.is_remote:
                self._next.fetch_ahead(self._stream)
        if self._next is not None:
            taken = stop - pool.span.start
            self._submit(self._next, -(-PACE * taken * self._next.num_parts // len(pool.span)))

    def _submit(self, pool: Pool, count: int) -> None:
        """Give the first `count` row groups of a pool to the threads, those that are not yet."""
        while pool.parts and pool.num_parts - len(pool.parts) < count:
            part = pool.parts.popleft()
            laid = self._threads.submit(pool.lay, self._stream, part, self._closed)
            self._laying.append((pool, laid))


def _pools(stream: TokenStream, wanted: Demand) -> Iterator[Pool]:
    """The pools that hold wanted windows, in the order of the stream."""
    assert stream.order is not None
    W, order, span = len(stream), stream.order, wanted.span
    g = span.start
    while g < span.stop:
        epoch, position = divmod(g, W)
        pool = order.pool(int(order.pool_of(np.array([position]))[0]))
        stop = min(span.stop, epoch * W + pool.stop)
        yield Pool(stream, epoch, range(g, stop), wanted)
        g = stop
