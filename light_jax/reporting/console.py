"""What a person sees on stderr: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from rich.console import Console
from rich.text import Text

from light_jax.parallel.hosts import is_main
from light_jax.reporting.display import Numbers, coloured, frame
from light_jax.reporting.live import SECONDS, Live
from light_llm.printing import columns, printable, wrapped


class Reporter:
    """Lines and the display of process 0; the other processes say nothing.

    A lost log must not cost the training: when standard error can no longer be written (its reader
    has ended, its disk is full), the reporter prints nothing more and the run goes on.
    """

    def __init__(self) -> None:
        self._silent = not is_main() or sys.stderr is None
        self._console = None if self._silent else Console(file=sys.stderr, highlight=False)
        self._live: Live | None = None
        self._numbers: Numbers | None = None
        self._doing: str | None = None
        self._due = self._began = 0.0

    @property
    def on_terminal(self) -> bool:
        """Whether lines can be drawn anew there."""
        if self._console is None or self._silent or self._console.is_dumb_terminal:
            return False
        try:
            return self._console.file.isatty()
        except (OSError, ValueError):  # it is closed
            return False

    @property
    def width(self) -> int | None:
        """Columns that a line may have; None without a terminal."""
        return columns(self._console.file) if self._console and self.on_terminal else None

    def line(self, text: str) -> None:
        """Print a line; on a terminal it is broken between words."""
        width = self.width
        self.command(text if width is None else wrapped(text, width))

    def command(self, text: str) -> None:
        """Print a line that is to be copied, and is not broken."""
        text = printable(text)
        if self.on_terminal and self._console is not None:
            text = coloured(text, self._console)
        live = self._live
        if live is None:
            self._tell(lambda: print(text, file=sys.stderr, flush=True))
        else:
            self._tell(lambda: live.print(text))

    @contextlib.contextmanager
    def compiling(self, what: str = "", *, keep: bool = False) -> Iterator[None]:
        """Say so for as long as it lasts: on a terminal with the seconds, elsewhere in one line.

        A signal may end the process meanwhile, so nothing is done to the terminal that would have
        to be undone.

        Args:
            what: is compiled, for whom nothing else says it.
            keep: leave the line, with the seconds that it took.
        """
        text = f"compiling {what} …" if what else "compiling…"
        if not self.on_terminal:
            self.line(text)
            yield
            return
        done = threading.Event()
        ticker = threading.Thread(target=self._count_seconds, args=(text, done, keep), daemon=True)
        ticker.start()
        try:
            yield
        finally:
            done.set()
            ticker.join()

    def _count_seconds(self, text: str, done: threading.Event, keep: bool) -> None:
        start = time.monotonic()
        while True:
            seconds = f"\r{text}  {time.monotonic() - start:.0f} s"
            self._tell(lambda text=seconds: print(text, end="", file=sys.stderr, flush=True))  # type: ignore[misc]
            if done.wait(1):
                break
        end = f"\r{text}  {time.monotonic() - start:.0f} s\n" if keep else "\r\x1b[K"
        self._tell(lambda: print(end, end="", file=sys.stderr, flush=True))

    @contextlib.contextmanager
    def showing(self, numbers: Numbers) -> Iterator[None]:
        """Show the display inside, if there is a terminal."""
        if self.on_terminal:
            assert self._console is not None
            self._numbers, self._began = numbers, time.monotonic()
            self._live = Live(self._console, self._frame, self._lose)
            self._live.start()
        try:
            yield
        finally:
            live, self._live = self._live, None
            if live is not None:
                live.stop()

    def shows(self, *, at_once: bool = False) -> bool:
        """Whether there is a display, and it is time for new numbers."""
        if self._live is None or self._silent:
            return False
        return at_once or time.monotonic() >= self._due

    def show(self, numbers: Numbers) -> None:
        """Give the display its numbers; without one nothing happens."""
        self._numbers, self._due = numbers, time.monotonic() + SECONDS

    @contextlib.contextmanager
    def doing(self, what: str | None) -> Iterator[None]:
        """Show why no step is made for as long as it lasts."""
        before, self._doing = self._doing, what
        try:
            yield
        finally:
            self._doing = before

    def _frame(self, width: int) -> list[Text]:
        assert self._numbers is not None
        elapsed = time.monotonic() - self._began
        return [Text(), *frame(self._numbers, width, elapsed, self._doing)]

    def _lose(self) -> None:
        self._silent = True

    def _tell(self, say: Callable[[], None]) -> None:
        if self._silent:
            return
        try:
            say()
        except (OSError, ValueError):  # ValueError: standard error is closed
            self._silent = True

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        pass
