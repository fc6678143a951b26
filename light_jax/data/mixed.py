"""MixedStream: several token streams as one, each with its share of the windows."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from light_jax.data.index import Fingerprint, IndexedShard, of_source
from light_jax.data.mixture import Mixture
from light_jax.data.pools import PoolReader
from light_jax.data.reader import AHEAD_BYTES, WindowReader, threads
from light_jax.data.shards import Paths
from light_jax.data.stream import TokenStream, WindowOrder, window_numbers
from light_jax.data.wanted import Share, Wanted
from light_jax.sources import DataSource, Taken, is_mixture, paths_of
from light_llm.errors import UserError


class Source(NamedTuple):
    name: str
    paths: Paths
    weight: float


class MixedStream:
    """The endless stream of windows of several sources, mixed by their weights.

    `Mixture` says from which source window g comes. The k-th window that is taken of a source is
    window k of its own `TokenStream`, which has this seed, seq_len and window_order: each source
    has its own epochs. Safe to share between threads.

    Raises:
        UserError: as `TokenStream`, for a source; or the weights are finer than a mixture can be.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        seq_len: int,
        seed: int,
        vocab_size: int | None = None,
        window_order: WindowOrder = "sequential",
        field: str = "train_data",
    ) -> None:
        self.seq_len, self.seed, self.vocab_size = seq_len, seed, vocab_size
        self.names = [source.name for source in sources]
        weights = [source.weight for source in sources]
        try:
            self.mixture = Mixture(weights)
        except ValueError as error:
            shown = ", ".join(str(weight) for weight in weights)
            raise UserError(f"{field}: the weights {shown} {error}") from None
        self.streams = [
            TokenStream(
                source.paths,
                seq_len=seq_len,
                seed=seed,
                vocab_size=vocab_size,
                window_order=window_order,
                field=f"{field}[{number}].path",
            )
            for number, source in enumerate(sources)
        ]

    @property
    def shards(self) -> list[IndexedShard]:
        return [shard for stream in self.streams for shard in stream.shards]

    @property
    def num_tokens(self) -> int:
        return sum(stream.num_tokens for stream in self.streams)

    @property
    def num_documents(self) -> int:
        return sum(stream.num_documents for stream in self.streams)

    @property
    def shares(self) -> list[Fraction]:
        return self.mixture.shares

    @property
    def fingerprint(self) -> Fingerprint:
        """Shards and shares as a checkpoint remembers them; see `describe_change`."""
        each = zip(self.streams, self.names, self.shares, strict=True)
        return [
            shard
            for stream, name, share in each
            for shard in of_source(stream.fingerprint, name, share)
        ]

    def taken(self, windows: int) -> list[Taken]:
        """What the first `windows` windows take of each source."""
        counts = self.mixture.taken(windows)
        return [
            Taken(name, count, count * self.seq_len, count / len(stream))
            for name, stream, count in zip(self.names, self.streams, counts, strict=True)
        ]

    def __getitem__(self, g: int) -> np.ndarray:
        return self.windows(np.array([operator.index(g)]))[0]

    def windows(self, windows_n: np.ndarray) -> np.ndarray:
        """Many windows at once: int [n] -> int32 [n, S + 1]."""
        g_n = window_numbers(windows_n)
        out = np.empty((len(g_n), self.seq_len + 1), np.int32)
        sources, numbers = self.mixture.at(g_n)
        for source in np.unique(sources).tolist():
            here = sources == source
            out[here] = self.streams[source].windows(numbers[here])
        return out

    def locate(self, g: int, count: int = 1) -> list[tuple[str, int, int]]:
        """As `TokenStream.locate`, one source after another."""
        before, after = self.mixture.taken(g), self.mixture.taken(g + count)
        each = zip(self.streams, before, after, strict=True)
        return [
            place
            for stream, first, stop in each
            if first < stop
            for place in stream.locate(first, stop - first)
        ]


Stream = TokenStream | MixedStream


def stream_of(data: str | list[str] | list[DataSource], **options: Any) -> Stream:
    """The stream of a config's `train_data` or `val_data`; of sources without weights, each has the
    same share.

    Args:
        options: those of `TokenStream`.

    Raises:
        UserError: as `TokenStream` and `MixedStream`.
    """
    if not is_mixture(data):
        return TokenStream(paths_of(data), **options)
    sources = [Source(each.label, each.path, each.weight or 1.0) for each in data]
    return MixedStream(sources, **options)


class Part(NamedTuple):
    """What an evaluation reads of a source."""

    name: str | None
    """None where there is only one."""
    share: float
    stream: TokenStream
    steps: int
    """Batches."""


def parts_of(stream: Stream, steps: int) -> list[Part]:
    """An evaluation of `steps` batches, shared out by the mixture; each source has at least one."""
    if isinstance(stream, TokenStream):
        return [Part(None, 1.0, stream, steps)]
    each = zip(
        stream.names, stream.shares, stream.streams, stream.mixture.taken(steps), strict=True
    )
    return [Part(name, float(share), one, max(1, count)) for name, share, one, count in each]


class MixedReader:
    """The windows that are wanted, int32 [n, S + 1], step by step, from a mixed stream.

    Each source has a reader of its own, which gives the host's windows of the source in their
    order; a step takes from each as many as the mixture says. All share the threads.
    """

    def __init__(self, stream: MixedStream, wanted: Wanted, num_workers: int) -> None:
        self._stream, self._wanted = stream, wanted
        self._steps = iter(range(wanted.num_steps))
        self._threads = threads(num_workers)
        is_held = np.zeros(wanted.batch_size, bool)
        is_held[wanted.rows] = True
        self._queues = []
        mixture, span = stream.mixture, wanted.span
        spans = zip(mixture.taken(span.start), mixture.taken(span.stop), strict=True)
        for number, (first, stop) in enumerate(spans):
            block = max(1, round(wanted.per_step * stream.shares[number]))
            places = functools.partial(mixture.places, number)
            share = Share(range(first, stop), block, places, is_held)
            self._queues.append(self._queue(stream.streams[number], share, num_workers))

    def _queue(self, stream: TokenStream, share: Share, num_workers: int) -> _Queue:
        if stream.order is not None:
            return _Queue(PoolReader(stream, share, num_workers, self._threads))
        ahead_bytes = AHEAD_BYTES // len(self._stream.streams)
        return _Queue(WindowReader(stream, share, num_workers, self._threads, ahead_bytes))

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        step = next(self._steps, None)
        if step is None:
            self.close()
            raise StopIteration
        g_n, _ = self._wanted.numbers(step)
        in_order = np.argsort(g_n)
        sources, _ = self._stream.mixture.at(g_n[in_order])
        out = np.empty((len(g_n), self._stream.seq_len + 1), np.int32)
        try:
            for source in np.unique(sources).tolist():
                here = in_order[sources == source]
                out[here] = self._queues[source].take(len(here))
        except BaseException:
            self.close()
            raise
        return out

    def close(self) -> None:
        """Stop the threads and wait for them."""
        self._steps = iter(())
        for queue in self._queues:
            queue.reader.close()


class _Queue:
    """The windows that a reader gives, any number at a time."""

    def __init__(self, reader: WindowReader | PoolReader) -> None:
        self.reader = reader
        self._ready = np.empty((0, 0), np.int32)

    def take(self, count: int) -> np.ndarray:
        """The next windows, int32 [count, S + 1]; the span has as many."""
        parts = []
        while count > 0:
            if not len(self._ready):  # nor need a block have a window of this host
                windows = next(self.reader, None)
                assert windows is not None
                self._ready = windows
            part, self._ready = self._ready[:count], self._ready[count:]
            parts.append(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
