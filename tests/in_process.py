"""A console script's `main` in the process of the tests: no import of a framework is paid again."""

from __future__ import annotations

import io
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch


@dataclass
class Ended:
    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def call(main: Callable[[], None], *args: object, input: str = "") -> Ended:
    """Run `main` with these arguments until it exits; signals and warnings are as before then."""
    streams = {name: io.TextIOWrapper(io.BytesIO(), "utf-8") for name in ("stdout", "stderr")}
    streams["stdin"] = io.TextIOWrapper(io.BytesIO(input.encode()), "utf-8")
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        with (
            patch.multiple(sys, argv=["test", *map(str, args)], **streams),
            patch.object(warnings, "showwarning", warnings.showwarning),
        ):
            main()
    except SystemExit as end:
        code = end.code
    finally:
        for number, handler in handlers.items():
            if handler is not signal.getsignal(number):
                signal.signal(number, handler)
    for stream in streams.values():
        stream.flush()
    out, err = (streams[name].buffer.getvalue().decode() for name in ("stdout", "stderr"))  # type: ignore[attr-defined]
    return Ended(code, out, err)
