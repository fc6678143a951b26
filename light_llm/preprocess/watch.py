"""How far each part is, in a file that others read while it is made."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from light_llm.errors import UserError
from light_llm.files import given
from light_llm.files.disk import write_atomically
from light_llm.preprocess.plan import Plan, folder_of
from light_llm.preprocess.progress import Progress
from light_llm.preprocess.shards import Shard
from light_llm.preprocess.skipped import check_number
from light_llm.preprocess.stage import PROGRESS

SECONDS = 2.0
"""Between two notes."""
IN_TURN = 64
"""Parts of which nothing new was seen yet that are read in one look: there may be thousands, on a
disk that all machines share."""


@dataclass(frozen=True)
class Seen:
    """What a part has made."""

    documents: int = 0
    tokens: int = 0
    share: float = 0.0
    """Of its input, 0 to 1."""

    @classmethod
    def of(cls, shards: Iterable[Shard]) -> Seen:
        there = list(shards)
        return cls(sum(shard.documents for shard in there), sum(shard.tokens for shard in there))


@contextlib.contextmanager
def watching(folder: Path, before: Seen, progress: Progress) -> Iterator[None]:
    """Note `progress` in a part's folder while the body runs.

    Args:
        before: what was there when it began.
    """
    ended = threading.Event()

    def keep_noting() -> None:
        while not ended.wait(SECONDS):
            now = Seen(
                before.documents + progress.documents,
                before.tokens + progress.tokens,
                progress.share or 0.0,
            )
            with contextlib.suppress(OSError):  # the run tells of its disk where it needs it
                write_seen(folder, now)

    thread = threading.Thread(target=keep_noting, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def write_seen(folder: Path, seen: Seen) -> None:
    write_atomically(folder / PROGRESS, (json.dumps(asdict(seen)) + "\n").encode())


def read_seen(folder: Path) -> Seen:
    """What the part's file says; nothing made, if there is none that a run wrote."""
    try:
        row = given.read_json(folder / PROGRESS)
        documents, tokens = check_number(row["documents"]), check_number(row["tokens"])
        return Seen(documents, tokens, min(max(float(row["share"]), 0.0), 1.0))
    except (UserError, OSError, ValueError, TypeError, KeyError):
        return Seen()


class Together:
    """How far all parts of a run are together.

    Args:
        waiting: the parts that are to be made; the others are read once, now.
    """

    def __init__(self, stage: Path, plan: Plan, waiting: Iterable[int]):
        parts = range(len(plan.parts))
        self._stage = stage
        self._sizes = [plan.bytes_of(part) for part in parts]
        self._seen = [self._read(part) for part in parts]
        self._waiting = deque(waiting)
        self._running: set[int] = set()

    def look(self) -> None:
        """Read how far those parts are that run, and whether some of the others do, in turn."""
        for part in self._running:
            self._seen[part] = self._read(part)
        for _ in range(min(IN_TURN, len(self._waiting))):
            part = self._waiting.popleft()
            before, self._seen[part] = self._seen[part], self._read(part)
            if self._seen[part] == before:
                self._waiting.append(part)
            else:
                self._running.add(part)

    def end(self, part: int) -> None:
        """A part is made: it is read for the last time."""
        self._seen[part] = self._read(part)
        if part in self._running:
            self._running.remove(part)
        else:
            self._waiting.remove(part)

    def now(self) -> Seen:
        """By the latest look."""
        made = sum(each.share * size for each, size in zip(self._seen, self._sizes, strict=True))
        return Seen(
            sum(each.documents for each in self._seen),
            sum(each.tokens for each in self._seen),
            made / (sum(self._sizes) or 1),
        )

    def _read(self, part: int) -> Seen:
        return read_seen(folder_of(self._stage, part))
