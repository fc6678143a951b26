"""What a person sees on stderr: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from light_jax.parallel.hosts import is_main
from light_llm.printing import printable


class Reporter:
    """Lines and progress of process 0; the other processes say nothing.

    A lost log must not cost the training: when standard error can no longer be written (its reader
    has ended, its disk is full), the reporter prints nothing more and the run goes on.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._silent = not is_main()

    @property
    def has_bar(self) -> bool:
        return self._bar is not None

    def line(self, text: str) -> None:
        text = printable(text)
        if self._bar is None:
            self._tell(lambda: print(text, file=sys.stderr, flush=True))
        else:
            self._tell(lambda: self._console.print(text, markup=False))

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
        if not self._console.is_terminal or self._silent:
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

    def start(self, step: int, num_steps: int) -> None:
        if is_main() and self._console.is_terminal:
            self._bar = Progress(
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                console=self._console,
            )
            self._task = self._bar.add_task("train", total=num_steps, completed=step, text="")
            self._tell(self._bar.start)

    def progress(self, step: int, text: str) -> None:
        """Move the bar; without a terminal, only `line` prints progress."""
        if (bar := self._bar) is not None:
            self._tell(lambda: bar.update(self._task, completed=step, text=text))

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
        if self._bar is not None:
            self._tell(self._bar.stop)
            self._bar = None
