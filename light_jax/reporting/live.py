"""Lines at the foot of a terminal that are drawn anew while others are printed above them.

The terminal is never put into a state that would have to be undone: the cursor stays visible and
stands below the lines, so that a process may end at any moment. Each drawing is one write, and a
window that became narrower, in which the lines before take more rows, is taken into account.
"""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.text import Text

SECONDS = 0.25
"""Between two drawings at the least."""


class Live:
    """Draws what `lines(width)` returns, from a thread of its own, between `start` and `stop`.

    Args:
        lost: is called when the terminal cannot be written any more; nothing is drawn from then on.
    """

    def __init__(
        self, console: Console, lines: Callable[[int], list[Text]], lost: Callable[[], None]
    ) -> None:
        self._console, self._lines, self._lost = console, lines, lost
        self._file = console.file
        self._drawn: list[int] = []  # how wide each line is that stands there
        self._shown = ""
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="light-display", daemon=True)
        self._streams: list[tuple[str, TextIO]] = []

    def start(self) -> None:
        for name in ("stderr", "stdout"):
            stream = getattr(sys, name)
            if stream is not None and stream.isatty():
                self._streams.append((name, stream))
                setattr(sys, name, Above(stream, self.print))
        self._thread.start()

    def stop(self) -> None:
        """Remove the lines; what was printed above them stays."""
        self._ended.set()
        self._thread.join()
        for name, stream in self._streams:
            if isinstance(current := getattr(sys, name), Above):
                current.flush_rest()
                setattr(sys, name, stream)
        with self._lock:
            self._write(self._erased())
            self._drawn, self._shown = [], ""

    def print(self, text: str) -> None:
        """Print whole lines above. `text` is as the terminal is to get it, without the last \\n."""
        with self._lock:
            erased, lines = self._erased(), self._shown
            self._write(f"{erased}{text}\n{lines}")

    def _refresh(self) -> None:
        while not self._ended.wait(SECONDS):
            self._draw()

    def _draw(self) -> None:
        width, height = self._console.size
        lines = self._lines(max(1, width - 1))[: max(1, height - 1)]
        with self._console.capture() as captured:
            for line in lines:
                self._console.print(line, soft_wrap=True)
        shown = captured.get()
        with self._lock:
            if self._ended.is_set() or shown == self._shown:
                return
            self._write(self._erased() + shown)
            self._drawn, self._shown = [line.cell_len for line in lines], shown

    def _erased(self) -> str:
        """The codes that go up to the first line and clear all below it."""
        width = max(1, self._console.width)
        rows = sum(max(1, -(-cells // width)) for cells in self._drawn)
        return f"\r\x1b[{rows}A\x1b[J" if rows else "\r"

    def _write(self, text: str) -> None:
        try:
            self._file.write(text)
            self._file.flush()
        except (OSError, ValueError):  # ValueError: it is closed
            self._ended.set()
            self._lost()


class Above(io.TextIOBase):
    """Stands for a stream of a terminal while lines are drawn there: what others print, whole
    lines at a time, comes above these."""

    def __init__(self, stream: TextIO, show: Callable[[str], None]) -> None:
        self._stream, self._show, self._rest = stream, show, ""
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        with self._lock:
            whole, newline, rest = (self._rest + text).rpartition("\n")
            self._rest = rest
        if newline:
            self._show(whole)
        return len(text)

    def flush_rest(self) -> None:
        rest, self._rest = self._rest, ""
        if rest:
            self._show(rest)

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def buffer(self):  # type: ignore[no-untyped-def]
        return self._stream.buffer

    def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
        with contextlib.suppress(AttributeError):
            return getattr(self._stream, name)
        raise AttributeError(name)
