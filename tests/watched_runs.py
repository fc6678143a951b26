"""Runs of `llm-train` that are watched as they go on, and killed if a test ends before them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forked import Process
from tiny_runs import BIN

PROMPTLY = 10  # seconds: a tiny save on a busy machine; a wait would take longer


@contextmanager
def started(config: Path, *args: str, under: str | None = None) -> Iterator[subprocess.Popen[str]]:
    """`llm-train CONFIG ARGS` in the config's folder; killed if the test ends before it does.

    Args:
        under: a line of bash that limits it.
    """
    command = [BIN / "llm-train", config, *args]
    start = Process if under is None else subprocess.Popen
    run = start(
        command if under is None else ["bash", "-c", f'{under}; exec "$0" "$@"', *command],
        cwd=config.parent,
        env=dict(os.environ),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield run
    finally:
        run.kill()
        run.wait()


@contextmanager
def both(runs: list[subprocess.Popen[str]]) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of one run, killed in the same way."""
    try:
        yield runs
    finally:
        for run in runs:
            run.kill()
            run.wait()


def until(run: subprocess.Popen[str], begin: str) -> list[str]:
    """Its lines on stderr, up to the first that begins like this."""
    lines = []
    for line in run.stderr:  # type: ignore[union-attr]
        lines.append(line)
        if line.startswith(begin):
            return lines
    raise AssertionError("".join(lines))


def ended_promptly(run: subprocess.Popen[str]) -> int:
    start = time.monotonic()
    run.communicate(timeout=120)
    assert time.monotonic() - start < PROMPTLY
    return run.returncode
