"""The progress of a run on stderr: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from light_llm.preprocess.notices import counted
from light_llm.printing import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_UPDATES = 0.1


class Progress:
    """The progress of one phase, a context manager: counts documents and tokens, shows the rate."""

    def __init__(self, phase: str):
        self.phase = printable(phase)
        self.documents = self.tokens = 0
        self._start = time.monotonic()
        self._last_shown = self._start
        self._bar: Bar | None = _terminal_bar() if sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task(self.phase, total=None, counts="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._show()
        if self._bar is not None:
            self._bar.stop()

    def advance(self, documents: int, tokens: int = 0) -> None:
        self.documents += documents
        self.tokens += tokens
        wait = SECONDS_BETWEEN_UPDATES if self._bar is not None else SECONDS_BETWEEN_LINES
        if time.monotonic() - self._last_shown >= wait:
            self._show()

    def _show(self) -> None:
        self._last_shown = time.monotonic()
        counts = counted(self.documents, "document")
        if self.tokens:
            rate = self.tokens / max(self._last_shown - self._start, 1e-9)
            counts += f", {counted(self.tokens, 'token')}, {rate:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.documents, counts=counts)
        else:
            print(f"{self.phase}: {counts}", file=sys.stderr)


def _terminal_bar() -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}", markup=False),  # a name may look like markup
        BarColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
