"""Batches: the windows that this host holds of each training step, or of an evaluation."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import numpy as np

from light_jax.data.mixed import MixedReader, MixedStream
from light_jax.data.pools import PoolReader
from light_jax.data.reader import WindowReader
from light_jax.data.stream import TokenStream
from light_jax.data.wanted import Wanted


class BatchLoader:
    """The batches of steps first_step to last_step - 1: int32 [accum, len(rows), S + 1] each.

    Row r of micro-batch a of step n is window (n·accum + a)·batch_size + r. `rows` are the rows
    that this host holds, all if None. Only row groups with one of its windows are decoded, by
    `num_workers` threads (0: the main thread); the batches do not depend on it. An iterator and a
    context manager; an error of a thread is raised by the `next()` that needs its batch.
    """

    def __init__(
        self,
        stream: TokenStream | MixedStream,
        *,
        batch_size: int,
        last_step: int,
        num_workers: int,
        first_step: int = 0,
        accum: int = 1,
        rows: Sequence[int] | None = None,
    ) -> None:
        per_step = accum * batch_size
        held = _held_rows(rows, batch_size)
        self._shape = (accum, len(held), stream.seq_len + 1)
        span = range(first_step * per_step, last_step * per_step)
        wanted = Wanted(span, per_step, batch_size, held)
        self._reader: MixedReader | WindowReader | PoolReader
        if isinstance(stream, MixedStream):
            self._reader = MixedReader(stream, wanted, num_workers)
        elif stream.order is None:
            self._reader = WindowReader(stream, wanted, num_workers)
        else:
            self._reader = PoolReader(stream, wanted, num_workers)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        return next(self._reader).reshape(self._shape)

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads and wait for them. The iteration ends."""
        self._reader.close()


def validation_batches(
    stream: TokenStream,
    batch_size: int,
    eval_steps: int,
    rows: Sequence[int] | None = None,
    num_workers: int = 1,
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """n = min(eval_steps · batch_size, W) windows of epoch 0, spread evenly over its W.

    They are floor(i · W / n) for i = 0 to n - 1.

    Yields tokens int32 [len(rows), S + 1] and mask float32 [len(rows)]; the mask is 0 on the rows
    of zeros that fill the last batch, else 1.
    """
    held = _held_rows(rows, batch_size)
    assert stream.order is None, "validation data is sequential"
    span = range(min(eval_steps * batch_size, len(stream)))
    spread_over = len(stream) if len(span) < len(stream) else None
    wanted = Wanted(span, batch_size, batch_size, held, spread_over)
    reader = WindowReader(stream, wanted, num_workers)
    try:
        for first, windows in zip(span[::batch_size], reader, strict=True):
            mask = (first + held < span.stop).astype(np.float32)
            tokens = np.zeros((len(held), stream.seq_len + 1), np.int32)
            tokens[mask > 0] = windows
            yield tokens, mask
    finally:
        reader.close()


def _held_rows(rows: Sequence[int] | None, batch_size: int) -> np.ndarray:
    held = np.arange(batch_size) if rows is None else np.asarray(rows, np.int64)
    if len(set(held.tolist())) < max(1, len(held)) or held.min() < 0 or held.max() >= batch_size:
        raise ValueError(f"rows={rows} must be different numbers of 0..{batch_size - 1}")
    return held
