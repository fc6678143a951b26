"""The token stream: window g is a function of (shards, seed, seq_len, window_order) alone."""

from __future__ import annotations

import functools
import itertools
import operator
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

import numpy as np

from light_jax.data.footer import reread_footer
from light_jax.data.index import Fingerprint, fingerprint, index_shards
from light_jax.data.order import ShuffledOrder
from light_jax.data.rowgroup import decode, first_row, row_lengths
from light_jax.data.shards import Paths
from light_llm.errors import UserError
from light_llm.files import fetched, urls

CACHE_BYTES = 8 * 2**20

WindowOrder = Literal["sequential", "shuffled"]


@dataclass(frozen=True)
class Epoch:
    """The row groups of an epoch that hold tokens, in order: int64 [groups].

    Group i holds tokens starts[i] to starts[i + 1] of the epoch; `starts` has an entry more.
    """

    groups: np.ndarray
    starts: np.ndarray

    def places(self, start: int, stop: int) -> range:
        """The places of the row groups that hold tokens [start, stop)."""
        first = int(self.starts.searchsorted(start, side="right"))
        return range(first - 1, first + int(self.starts[first:].searchsorted(stop)))


class TokenStream:
    """The endless stream of windows of parquet shards.

    Epoch e is the shards in the order that `random.Random(seed + e)` shuffles them into, rows in
    order, all tokens one after another. Its window w is tokens [w·S, w·S + S], S + 1 of them,
    S = seq_len; its tail is dropped. `stream[g]` is window g % W of epoch g // W for any g >= 0,
    int32 [S + 1]; `len(stream)` is W; iteration yields the W windows of epoch 0. With the
    window_order `shuffled`, `stream[g]` is what stands at place g % W of the epoch's
    `ShuffledOrder`, `order`, which is None where the order is sequential. Safe to share between
    threads.

    Raises:
        UserError: the shards cannot be used (see `index_shards`) or hold no whole window; while
            reading, a shard is damaged or no longer the same. `field` is the config key that
            the messages name.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        seq_len: int,
        seed: int,
        vocab_size: int | None = None,
        window_order: WindowOrder = "sequential",
        field: str = "train_data",
    ) -> None:
        self.seq_len = seq_len
        self.seed = seed
        self.vocab_size = vocab_size
        self.shards = index_shards(paths, vocab_size, field)
        self.num_tokens = sum(int(shard.tokens.sum()) for shard in self.shards)
        self.num_documents = sum(int(shard.rows.sum()) for shard in self.shards)
        self._num_windows = max(0, self.num_tokens - 1) // seq_len
        if not self._num_windows:
            raise UserError(
                f"{field}: {len(self.shards)} shard(s) with {self.num_tokens} tokens hold no "
                f"window of seq_len + 1 = {seq_len + 1}; add data or lower seq_len={seq_len}"
            )
        self.order = None
        if window_order == "shuffled":
            self.order = ShuffledOrder(seed, self._num_windows, seq_len)
        groups_per_shard = [len(shard.tokens) for shard in self.shards]
        self._first_group = np.cumsum([0, *groups_per_shard])
        self._tokens = np.concatenate([shard.tokens for shard in self.shards])
        self._cache = _Cache(CACHE_BYTES)
        self.epoch = functools.lru_cache(maxsize=4)(self._epoch)

    def __len__(self) -> int:
        return self._num_windows

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[window] for window in range(len(self)))

    def __getitem__(self, g: int) -> np.ndarray:
        return self.windows(np.array([operator.index(g)]))[0]

    def windows(self, windows_n: np.ndarray) -> np.ndarray:
        """Many windows at once: int [n] -> int32 [n, S + 1]; the last few row groups are kept."""
        g_n = window_numbers(windows_n)
        S, found = self.seq_len, np.empty((len(g_n), self.seq_len + 1), np.int32)
        numbers = self.unshuffled(g_n)
        by_number = np.argsort(numbers, kind="stable")  # neighbours in the shards at once
        for low, high, number, window in self._runs(numbers[by_number]):
            epoch = self.epoch(number)
            for place in epoch.places(window * S, (window + high - low) * S + 1):
                group = int(epoch.groups[place])
                tokens = self._cache.get(group, functools.partial(self._read, group))
                lay(tokens, int(epoch.starts[place]), window, found[low:high])
        out = np.empty_like(found)
        out[by_number] = found
        return out

    def unshuffled(self, windows_n: np.ndarray) -> np.ndarray:
        """The numbers that these windows have in the sequential stream: int [n] -> int64 [n]."""
        numbers = np.array(windows_n, np.int64)
        if self.order is not None:
            epochs, positions = np.divmod(numbers, len(self))
            for epoch in np.unique(epochs).tolist():
                here = epochs == epoch
                numbers[here] = epoch * len(self) + self.order.windows(epoch, positions[here])
        return numbers

    def _runs(self, numbers: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
        """(low, high, epoch, window): numbers[low:high] follow each other, from that window on."""
        ends_run = (np.diff(numbers) != 1) | (numbers[1:] % len(self) == 0)
        cuts = [0, *(np.flatnonzero(ends_run) + 1).tolist(), len(numbers)]
        for low, high in itertools.pairwise(cuts):
            if low < high:
                yield low, high, *divmod(int(numbers[low]), len(self))

    def locate(self, g: int, count: int = 1) -> list[tuple[str, int, int]]:
        """Where windows g to g + count - 1 came from: (shard, first row, last row), in order.

        Rows count from 0 within their shard. For error messages: reads its row groups again.
        """
        places: list[tuple[str, int, int]] = []
        numbers = self.unshuffled(np.arange(g, g + count))
        ends: dict[int, np.ndarray] = {}
        for low, high, number, window in self._runs(numbers):
            start, stop = window * self.seq_len, (window + high - low) * self.seq_len + 1
            epoch, begin = self.epoch(number), len(places)
            for place in epoch.places(start, stop):
                skip = int(epoch.starts[place])
                group = int(epoch.groups[place])
                path, first, last = self._rows(group, start - skip, stop - skip, ends)
                if places[begin:] and places[-1][0] == path and places[-1][2] <= first:
                    first = places.pop()[1]  # rows between the two are empty
                places.append((path, first, last))
        return places

    @property
    def fingerprint(self) -> Fingerprint:
        """The shards as a checkpoint remembers them; see `describe_change`."""
        return fingerprint(self.shards)

    def read(self, number: int, place: int) -> tuple[int, np.ndarray]:
        """Row group `place` of an epoch, read again: where it begins, and its tokens int32 [n]."""
        epoch = self.epoch(number)
        return int(epoch.starts[place]), self._read(int(epoch.groups[place]))

    def shard_of(self, number: int, place: int) -> str | None:
        """The URL of the shard that holds row group `place` of an epoch; None if it is a file."""
        path = self.shards[self._home(int(self.epoch(number).groups[place]))[0]].path
        return path if urls.is_url(path) else None

    def fetch(self, number: int, place: int, unless: threading.Event) -> None:
        """Wait until the shard of a row group is here; local ones are.

        Raises:
            Abandoned: `unless` was set meanwhile.
            UserError: it cannot be fetched.
        """
        if (url := self.shard_of(number, place)) is not None:
            fetched.local(url, unless)

    def fetch_ahead(self, number: int, places: Iterable[int]) -> None:
        """Begin to fetch the shards of these row groups, in the background."""
        shards = dict.fromkeys(self.shard_of(number, place) for place in places)
        for url in shards:
            if url is not None and fetched.kept(url) is None:
                fetched.want(url)

    @property
    def is_remote(self) -> bool:
        return any(urls.is_url(shard.path) for shard in self.shards)

    def _epoch(self, number: int) -> Epoch:
        order = list(range(len(self.shards)))
        random.Random(self.seed + number).shuffle(order)
        first = self._first_group
        groups = np.concatenate([np.arange(first[shard], first[shard + 1]) for shard in order])
        groups = groups[self._tokens[groups] > 0]
        return Epoch(groups, np.concatenate([[0], np.cumsum(self._tokens[groups])]))

    def _home(self, group: int) -> tuple[int, int]:
        """The shard of a row group, and its number there."""
        shard = int(np.searchsorted(self._first_group, group, side="right")) - 1
        return shard, group - int(self._first_group[shard])

    def _read(self, group: int) -> np.ndarray:
        index, number = self._home(group)
        shard = self.shards[index]
        footer = reread_footer(shard.path, shard.footer_crc32)
        tokens = decode(footer, number, self.vocab_size)
        if tokens.size != shard.tokens[number]:
            raise UserError(
                f"{shard.path}: row group {number} holds {tokens.size} tokens where its footer "
                f"says {shard.tokens[number]}; write the shard again"
            )
        return tokens

    def _rows(
        self, group: int, start: int, stop: int, ends_of: dict[int, np.ndarray]
    ) -> tuple[str, int, int]:
        """The rows of tokens [start, stop) of a row group, cut to those that it holds.

        `ends_of` keeps where the rows of a row group end, so that each is read once.
        """
        index, number = self._home(group)
        shard = self.shards[index]
        footer = reread_footer(shard.path, shard.footer_crc32)
        if group not in ends_of:
            ends_of[group] = np.cumsum(row_lengths(footer, number))
        ends = ends_of[group]
        wanted = [max(0, start), min(stop, int(ends[-1])) - 1]
        first, last = np.searchsorted(ends, wanted, side="right") + first_row(footer, number)
        return shard.path, int(first), int(last)


def window_numbers(windows_n: np.ndarray) -> np.ndarray:
    """Numbers of windows as int64 [n].

    Raises:
        IndexError: one is below 0.
    """
    g_n = np.asarray(windows_n, np.int64)
    if g_n.size and g_n.min() < 0:
        raise IndexError(f"window {g_n.min()} is below 0, where the stream begins")
    return g_n


def lay(tokens: np.ndarray, start: int, window: int, out: np.ndarray) -> None:
    """Write `tokens` into `out` [k, S + 1], which are windows `window` and following of an epoch.

    `tokens` begin at the epoch's token `start`. The parts of `out` from other row groups are kept.
    """
    k, S = out.shape[0], out.shape[1] - 1
    at = window * S - start  # where the first window begins in `tokens`
    low = max(0, -(at // S))  # [low, high): the windows that lie in `tokens` whole
    high = max(low, min(k, (tokens.size - 1 - at) // S))
    if low < high:
        whole = tokens[at + low * S : at + high * S + 1]
        out[low:high, :S] = whole[:-1].reshape(-1, S)
        out[low:high, S] = whole[S::S]
    for i in (i for i in (low - 1, high) if 0 <= i < k):  # those that begin before, or go on
        first, last = max(0, at + i * S), min(tokens.size, at + i * S + S + 1)
        if first < last:
            out[i, first - at - i * S : last - at - i * S] = tokens[first:last]


class _Cache:
    """The last few row groups that were read, at most `limit` bytes of them but always one.

    Threads that ask for the same row group at once wait for a single read.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._kept: OrderedDict[int, Future[np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: int, read: Callable[[], np.ndarray]) -> np.ndarray:
        with self._lock:
            future = self._kept.get(key)
            if future is not None:
                self._kept.move_to_end(key)
            else:
                mine = self._kept[key] = Future()
        if future is not None:
            return future.result()
        try:
            array = read()
        except BaseException as error:
            with self._lock:
                del self._kept[key]
            mine.set_exception(error)
            raise
        mine.set_result(array)
        with self._lock:
            self._bytes += array.nbytes
            self._evict(key)
        return array

    def _evict(self, newest: int) -> None:
        while self._bytes > self._limit:
            kept = self._kept.items()
            oldest = next((key for key, read in kept if key != newest and read.done()), None)
            if oldest is None:
                return
            self._bytes -= self._kept.pop(oldest).result().nbytes
