"""Several real processes of one run on the loopback interface, killed when the test ends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import forked
import tiny_runs
from tiny_runs import BIN, IMPORTS, ROOT

Process = subprocess.Popen[str]


def environment(number: int, count: int, port: int) -> dict[str, str]:
    return {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(number),
    }


@contextmanager
def several(
    commands: list[list[Any] | None],
    cwd: Path,
    devices: int = 1,
    env: Callable[[int], dict[str, str]] = lambda number: {},
) -> Iterator[list[Process]]:
    """The processes; none is started where the command is None, though the others expect it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    runs = [
        forked.Process(
            list(map(str, command)),
            cwd=cwd,
            env=os.environ
            | tiny_runs.devices(devices)
            | environment(number, len(commands), port)
            | env(number),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, command in enumerate(commands)
        if command is not None
    ]
    try:
        yield runs
    finally:
        for run in runs:
            run.kill()
            run.communicate()


@contextmanager
def joined(timeout: float, *whats: str | None) -> Iterator[list[Process]]:
    """Processes of tests/joined.py."""
    script = [sys.executable, ROOT / "tests/joined.py", timeout]
    commands = [None if what is None else [*script, what] for what in whats]
    with several(commands, ROOT, env=lambda number: IMPORTS) as runs:
        for run in runs:
            assert run.stdout is not None
            assert run.stdout.readline() == "imported\n"
        for run in runs:
            assert run.stdin is not None
            run.stdin.write("go\n")
            run.stdin.flush()
        yield runs


def training(config: Path, *args: str, count: int = 2) -> list[list[Any] | None]:
    """The command of each process."""
    return [[BIN / "llm-train", config, *args]] * count


def wait_for(condition: Callable[[], Any], runs: list[Process], seconds: float = 400) -> None:
    """Wait for what the processes do, all of which go on meanwhile."""
    end = time.monotonic() + seconds
    while not condition():
        ended = [run for run in runs if run.poll() is not None]
        assert not ended, [run.communicate()[1] for run in ended]
        assert time.monotonic() < end
        time.sleep(0.05)


def ended(runs: list[Process], within: float) -> tuple[list[int], list[str]]:
    """(exit codes, what was said on stderr) of processes that end within so many seconds."""
    start = time.monotonic()
    said = [run.communicate(timeout=400)[1] for run in runs]
    assert time.monotonic() - start < within, said
    return [run.returncode for run in runs], said
