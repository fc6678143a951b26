"""The progress of a run on stderr: a bar on a terminal, else a line now and then.

A thread shows it, so that it goes on where the run waits for a disk, a network or a library.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING

from light_llm.preprocess.notices import counted
from light_llm.printing import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

SECONDS_TO_THE_FIRST_LINE = 1.0
SECONDS_BETWEEN_LINES = 2.0, 60.0
"""At first and at most: the time between two lines grows with the run."""
SECONDS_BETWEEN_UPDATES = 0.1
WIDE = 100
"""Columns of a terminal that has room for a bar beside the numbers."""


class Progress:
    """The progress of one phase, a context manager: what was counted, how fast, how long to go.

    `share` is how much of the input that was, 0 to 1, where it is known, and `read` and `total` are
    its bytes, likewise.
    """

    def __init__(self, phase: str):
        self.phase = printable(phase)
        self.documents = self.tokens = self.characters = 0
        self.share: float | None = None
        self.read: int | None = None
        self.total = 0
        self._start = time.monotonic()
        self._first: tuple[float, float] | None = None
        self._said = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_showing, daemon=True)
        self._bar: Bar | None = _terminal_bar() if sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task(self.phase, total=None, text="")
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        if kind is None and (self.documents or self._said or self._bar is not None):
            self._show(done=True)
        if self._bar is not None:
            self._bar.stop()

    def advance(self, documents: int, tokens: int = 0, characters: int = 0) -> None:
        self.documents += documents
        self.tokens += tokens
        self.characters += characters

    def show_read(self, read: int, total: int) -> None:
        """Of the input, `read` of `total` bytes are done."""
        self.read, self.total = read, total
        self.share = read / total if total else None

    def _keep_showing(self) -> None:
        least, most = SECONDS_BETWEEN_LINES
        wait = SECONDS_TO_THE_FIRST_LINE if self._bar is None else SECONDS_BETWEEN_UPDATES
        while not self._ended.wait(wait):
            with contextlib.suppress(OSError):  # nobody reads it: the run tells that where it ends
                self._show()
            if self._bar is None:
                wait = min(most, max(least, self._seconds() / 2))

    def _show(self, done: bool = False) -> None:
        share = None if done else self.share
        text = self._text(share, done)
        if self._bar is not None:
            total = self.documents or 1 if done else None
            task = self._bar.task_ids[0]
            if share is None:
                self._bar.update(task, total=total, completed=self.documents or 1, text=text)
            else:
                self._bar.update(task, total=1.0, completed=share, text=text)
        else:
            self._said = True
            print(f"{self.phase}: {text}", file=sys.stderr, flush=True)

    def _text(self, share: float | None, done: bool) -> str:
        parts = [counted(self.documents, "document")] if self.documents else []
        name, number = ("token", self.tokens) if self.tokens else ("character", self.characters)
        if number:
            rate = number / max(self._seconds(), 1e-9)
            if self._bar is None:
                parts += [counted(number, name), f"{rate:,.0f} {name}s/s"]
            else:  # it has to fit
                parts += [f"{short(number)} {name}s", f"{short(rate)} {name}s/s"]
        if share is not None:
            if self.read is not None and self._has_room():
                parts.append(f"{self.read / 1e6:,.1f} of {self.total / 1e6:,.1f} MB")
            parts.append(f"{share:.0%}")
            left = self._left(share)
            parts += [] if left is None else [f"{duration(left)} left"]
        if done or not parts:
            parts.append(duration(self._seconds()))
        return ", ".join(parts)

    def _has_room(self) -> bool:
        return self._bar is None or self._bar.console.width >= WIDE

    def _left(self, share: float) -> float | None:
        """Seconds, by the speed since the first share that was seen: a run may begin midway."""
        now = self._seconds()
        if self._first is None:
            self._first = now, share
        since, at = self._first
        if now - since < 1 or share <= at:
            return None
        return (now - since) * (1 - share) / (share - at)

    def _seconds(self) -> float:
        return time.monotonic() - self._start


def short(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    return str(timedelta(seconds=round(min(seconds, 8.64e10))))  # a thousand years at most


def _terminal_bar() -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    console = Console(stderr=True)
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False),  # a name may look like markup
        TextColumn(
            "{task.fields[text]}",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis"),
        ),
    ]
    if console.width >= WIDE:
        columns.insert(1, BarColumn(bar_width=20))
    return Bar(*columns, console=console)
