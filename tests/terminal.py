"""A run of a command on a terminal, and what stands there at the end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_runs import BIN


def on_terminal(
    *args: Any,
    cwd: Path,
    columns: int = 80,
    env: dict[str, str] | None = None,
    seen: Callable[[int, bytes], bool] | None = None,
) -> tuple[int, bytes]:
    """(exit code, all that was written) of a console script whose stdin, stdout and stderr are a
    terminal of 40 rows.

    Args:
        seen: is called with the terminal and what was written so far; True ends the reading: the
            terminal goes away.
    """
    ours, theirs = pty.openpty()
    resize(ours, columns)
    name, *rest = map(str, args)
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    run = subprocess.Popen(
        [BIN / name, *rest],
        cwd=cwd,
        env=clean | {"TERM": "xterm-256color"} | (env or {}),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    written = b""
    try:
        while piece := _read(ours):
            written += piece
            if seen is not None and seen(ours, written):
                break
        os.close(ours)
        return run.wait(120), written
    finally:
        run.kill()
        run.wait()


def resize(terminal: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 2**16)
    except OSError:  # nobody has the other side open any more
        return b""


def screen(written: bytes, columns: int) -> list[str]:
    """The lines of a terminal without end, after what a command wrote; asserts that it knows each
    code."""
    lines, row, column = [""], 0, 0
    tokens = re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+|\x1b", written.decode())
    for token in tokens:
        if token == "\r":
            column = 0
        elif token == "\n":
            row, column = row + 1, column
        elif token.startswith("\x1b"):
            number = int(re.sub(r"\D.*", "", token[2:]) or 1) if len(token) > 2 else 0
            if token.endswith("A"):
                row = max(0, row - number)
            elif token == "\x1b[J":
                del lines[row + 1 :]
                lines[row] = lines[row][:column]
            elif token == "\x1b[K":
                lines[row] = lines[row][:column]
            else:
                assert token.endswith("m"), token
        else:
            for letter in token:
                if column == columns:
                    row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
                line = lines[row].ljust(column)
                lines[row] = line[:column] + letter + line[column + 1 :]
                column += 1
        lines += [""] * (row + 1 - len(lines))
    return [line.rstrip() for line in lines]
