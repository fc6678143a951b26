"""Train and val, written side by side in a thread of their own.

Compressing takes most of the time where gigatoken encodes, and Arrow does it without Python's lock.
So the next documents are read and encoded meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from light_llm.preprocess.rowbatch import RowBatch
from light_llm.preprocess.shards import Shard, ShardWriter

if TYPE_CHECKING:
    import numpy as np

AHEAD = 3
"""Batches that may wait for the disk."""


class Sides:
    """Both sides of a split; a context manager. They end their shards together.

    A shard has at most `shard_size` tokens, or one longer document. An error of the thread is
    raised by a later call.
    """

    def __init__(self, train: ShardWriter, val: ShardWriter, shard_size: int):
        self._writers = (train, val)
        self._shard_size = shard_size
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[Any]] = deque()
        self._failure: BaseException | None = None
        self._documents, self._tokens = [0, 0], [0, 0]

    def __enter__(self) -> Sides:
        return self

    def __exit__(self, *exception: object) -> None:
        failure: BaseException | None = None
        while True:
            try:
                self._thread.shutdown(cancel_futures=True)
                break
            except BaseException as error:  # a second signal: the thread must end first, since who
                failure = error  # has the lock next may write to the same files
        for writer in self._writers:
            writer.drop()
        if failure is not None:
            raise failure

    def stop(self) -> None:
        """Let the thread do nothing behind what it does now."""
        self._failure = self._failure or CancelledError()

    def add(self, rows: RowBatch, held: np.ndarray) -> int:
        """Write the first of the documents, as many as the open shards take; how many these are.

        Args:
            held: bool [documents], whether each is held out.
        """
        number = self._room(rows, held)
        rows, held = rows.slice(0, number), held[:number]
        for side in (0, 1):
            self._documents[side] += int((held == side).sum())
            self._tokens[side] += int(rows.tokens[held == side].sum())
        self._do(lambda: self._write(rows, held))
        return number

    def close(self) -> Future[list[Shard]]:
        """Complete the open shards, in the thread: those that have documents."""
        self._documents, self._tokens = [0, 0], [0, 0]
        return self._do(lambda: [*filter(None, (writer.close() for writer in self._writers))])

    def _room(self, rows: RowBatch, held: np.ndarray) -> int:
        import numpy as np

        room = len(rows)
        for side in (0, 1):
            ours = np.flatnonzero(held == side)
            filled = self._tokens[side] + np.cumsum(rows.tokens[ours])
            first = 0 if self._documents[side] else 1  # an empty shard takes any
            beyond = ours[first:][filled[first:] > self._shard_size]
            room = min([room, *beyond[:1].tolist()])
        return room

    def _write(self, rows: RowBatch, held: np.ndarray) -> None:
        for side, writer in enumerate(self._writers):
            for some in rows.where(held == side):
                writer.add(some)

    def _do(self, work: Callable[[], Any]) -> Future[Any]:
        future = self._thread.submit(self._run, work)
        self._waiting.append(future)
        while self._waiting and (len(self._waiting) > AHEAD or self._waiting[0].done()):
            self._waiting.popleft().result()
        return future

    def _run(self, work: Callable[[], Any]) -> Any:
        if self._failure is not None:
            raise self._failure  # nothing is written behind a gap
        try:
            return work()
        except BaseException as error:
            self._failure = error
            raise
