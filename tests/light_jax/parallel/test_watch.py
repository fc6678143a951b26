"""None of several processes waits for one that does not answer: real processes, without a model."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import pytest
from several import ended, joined

from light_jax.parallel.line import Line, connect

TIMEOUT = 8.0  # seconds: much for a busy machine, little for a test
SLACK = 8.0  # a busy machine
HOST = r"\(.+\)"


def until_joined(runs):
    for run in runs:
        assert run.stdout.readline() == "joined\n", run.communicate()[1]


def check(said: str, message: str, *, alone: bool = True) -> None:
    """It is the last line. Where process 0 is gone, JAX may write its own lines before it."""
    *before, last = said.splitlines()
    assert last.startswith("joined.py: process "), said
    assert message in last, said
    assert "Traceback" not in said
    assert not (alone and before), said


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_is_named_at_once(victim):
    with joined(TIMEOUT, "waits", "waits", "waits") as runs:
        until_joined(runs)
        runs[victim].kill()
        others = [run for run in runs if run is not runs[victim]]
        codes, said = ended(others, within=SLACK)
    assert codes == [4, 4]
    for each in said:
        check(each, f"process {victim} (", alone=victim != 0)
        assert "is gone: its connection closed; start all processes again" in each


def test_the_message_is_the_last_line_whatever_libraries_write():
    with joined(TIMEOUT, "chatters", "waits", "waits") as runs:
        until_joined(runs)
        runs[1].send_signal(signal.SIGSTOP)  # process 0 waits for it, when it has told
        runs[2].kill()
        codes, said = ended(runs[:1], within=SLACK)
    assert codes == [4]
    assert said[0].startswith("F1128 ")
    check(said[0], "process 2 (", alone=False)


ZERO = """import time
from light_jax.parallel.watch import Watch
Watch(0, 3, 8.0).meet("127.0.0.1", {port})
time.sleep(60)"""


def test_process_0_goes_last_since_jax_aborts_those_that_it_leaves():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    zero = subprocess.Popen([sys.executable, "-c", ZERO.format(port=port)], stderr=subprocess.PIPE)
    with zero:
        lines = []
        for process in (1, 2):
            connection = connect("127.0.0.1", port, 60)
            assert connection is not None
            lines.append(Line(connection))
            lines[-1].send({"process": process, "count": 3, "host": "here"})
        for line in lines:
            hear(line, "met")
        lines[0].socket.close()
        lines[1].send(hear(lines[1], "over"))
        time.sleep(0.5)
        assert zero.poll() is None
        lines[1].socket.close()
        assert zero.wait(SLACK) == 4


def hear(line: Line, word: str) -> dict[str, Any]:
    """The first message with this word."""
    end = time.monotonic() + SLACK
    while time.monotonic() < end:
        with contextlib.suppress(BlockingIOError):
            for words in line.receive():
                if word in words:
                    return words
        time.sleep(0.01)
    raise AssertionError(word)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_stopped_is_named_within_the_timeout(victim):
    with joined(TIMEOUT, "waits", "waits", "waits") as runs:
        until_joined(runs)
        runs[victim].send_signal(signal.SIGSTOP)
        others = [run for run in runs if run is not runs[victim]]
        codes, said = ended(others, within=TIMEOUT + SLACK)
        runs[victim].send_signal(signal.SIGCONT)  # too late: it sees that the others are gone
        late, lates = ended([runs[victim]], within=TIMEOUT + SLACK)
    assert codes == [4, 4]
    for each in said:
        check(each, f"process {victim} (")
        assert "gave no sign of life for" in each
        assert "(cluster_timeout 8 s)" in each
    assert late == [4], lates


@pytest.mark.parametrize("lingering", [0, 1])
def test_a_process_that_cannot_exit_is_ended_once_all_have_finished(lingering):
    what = ["ends", "ends", "ends"]
    what[lingering] = "lingers"
    with joined(TIMEOUT, *what) as runs:
        until_joined(runs)
        codes, said = ended(runs, within=TIMEOUT + SLACK)
    assert (codes, said) == ([0, 0, 0], ["", "", ""])


def test_a_process_that_is_slow_or_stopped_for_less_than_the_timeout_is_no_end():
    with joined(TIMEOUT, "compiles", "locks", "ends") as runs:
        until_joined(runs)
        for run in runs[:2]:
            run.send_signal(signal.SIGSTOP)
            time.sleep(TIMEOUT / 4)
            run.send_signal(signal.SIGCONT)
        codes, said = ended(runs, within=4 * TIMEOUT)
    assert codes == [0, 0, 0], said


@pytest.mark.slow
def test_a_run_that_is_suspended_for_longer_than_the_timeout_goes_on():
    """All processes are, as a scheduler does it: nobody listened, so nobody was silent."""
    with joined(TIMEOUT / 2, "compiles", "compiles") as runs:
        until_joined(runs)
        for run in runs:
            run.send_signal(signal.SIGSTOP)
        time.sleep(TIMEOUT * 0.75)
        for run in runs:
            run.send_signal(signal.SIGCONT)
        codes, said = ended(runs, within=4 * TIMEOUT)
    assert codes == [0, 0], said


@pytest.mark.parametrize("absent", [0, 2])
def test_a_process_that_never_starts_is_named(absent):
    whats: list[str | None] = ["waits", "waits", "waits"]
    whats[absent] = None
    with joined(3.0, *whats) as runs:
        codes, said = ended(runs, within=3 + SLACK)
    assert codes == [4, 4]
    for each in said:
        if absent == 0:
            check(each, "process 0 does not listen at 127.0.0.1:")
        else:
            check(each, "process 2 of 3 did not start (cluster_timeout 3 s)")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_fails_says_why_to_all(victim):
    whats = ["waits", "waits", "waits"]
    whats[victim] = "fails"
    with joined(TIMEOUT, *whats) as runs:
        until_joined(runs)
        codes, said = ended(runs, within=TIMEOUT + SLACK)
    assert codes == [2, 2, 2]
    for number, each in enumerate(said):
        if number == victim:
            assert each == "joined: its shard is bad\n"
        else:
            check(each, f"process {victim} (")
            assert "stopped: its shard is bad" in each
