"""SIGTERM and Ctrl-C at any moment: one commit, the documented exit code; a second one exits.

Before the first step, and in long phases of real processes: tests/trust/test_interruptions.py.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tiny_runs import assert_same_weights, column, metrics, start_processes, write_config

from light_jax.checkpoint.saver import Saver
from light_jax.data.loader import BatchLoader
from light_jax.training import loop as trainer
from light_jax.training import signals, validation
from light_jax.training.loop import run_config
from light_llm.checkpoint import digests, layout, reading

TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    config = write_config(folder / "c.yaml", checkpoint_dir=str(folder / "out"), save_every=9)
    assert run_config(config) == 0
    return folder / "out"


# where the signal comes: the function that raises it as it begins, the step whose commit follows
MOMENTS = {
    "the first step": (trainer, "to_global", 1, TERM, 1),
    "waiting for data": (BatchLoader, "__next__", 2, INT, 2),
    "a step": (trainer, "to_global", 2, TERM, 2),
    "evaluation": (validation, "validation_batches", 1, INT, 3),
    "saving": (Saver, "save", 1, TERM, 4),  # of `best` at step 3: that is done, then one more step
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_one_commit_and_the_exit_code(whole, tmp_path, monkeypatch, moment):
    owner, name, call, number, step = MOMENTS[moment]
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "c.yaml", save_every=9)
    real, calls, before = getattr(owner, name), [], signal.getsignal(number)

    def interrupted(*args):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        assert run_config("c.yaml") == 128 + number
    tags = [tag for tag in layout.tags(Path("out")) if tag.startswith("step")]
    assert tags == [f"step{step:07d}"]
    assert signal.getsignal(number) == before
    if moment in ("the first step", "evaluation"):
        assert run_config("c.yaml", "auto") == 0
        assert_same_weights(whole / "final.safetensors", tmp_path / "out/final.safetensors")
        assert metrics(Path("out"), timeless=True) == metrics(whole, timeless=True)


SLEEPER = """
import ctypes, signal, sys, time
from light_jax.training.signals import Stopper
with Stopper() as stopper:
    stopper.training_begins()
    print("ready", flush=True)
    end = time.monotonic() + 60
    while time.monotonic() < end:  # in C, as a compilation is: Python's own handlers do not run
        ctypes.CDLL(None).usleep(10_000_000)
"""


@pytest.mark.parametrize("number", [TERM, INT])
def test_a_second_signal_exits_at_once(number):
    process = subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    time.sleep(0.5)
    assert process.poll() is None
    start = time.monotonic()
    process.send_signal(number)
    assert process.wait(timeout=30) == 128 + number
    assert time.monotonic() - start < 5


def test_a_second_signal_exits_while_c_code_runs(monkeypatch):
    """No line of Python runs in the main thread: the listening thread alone counts."""
    exited = threading.Event()
    monkeypatch.setattr(signals.os, "_exit", lambda code: exited.set())
    with signals.Stopper() as stopper:
        stopper.training_begins()
        pipe = signal.set_wakeup_fd(-1)  # where the interpreter's C handler writes
        signal.set_wakeup_fd(pipe)
        os.write(pipe, bytes([TERM, TERM]))
        assert exited.wait(10)
    assert stopper.signal == TERM


def test_two_processes_commit_the_same_step(tmp_path):
    """The signal reaches one of them, at some step of it; both stop after the same."""
    changes = {"num_steps": 100_000, "save_every": 99_999, "val_data": ..., "log_every": 20}
    changes["model"] = {"num_layers": 1, "d_model": 16}
    config = write_config(tmp_path / "c.yaml", mesh={"data": 1, "fsdp": 2}, **changes)
    processes = start_processes(config)
    log = tmp_path / "out/metrics.jsonl"
    for _ in range(600):
        if log.exists() and log.read_text():
            break
        time.sleep(0.1)
    processes[1].send_signal(TERM)
    stderr = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], stderr
    (tag,) = layout.tags(tmp_path / "out")
    assert f"step={int(tag.removeprefix('step'))}" in stderr[0]
    digests.verify(reading.read_checkpoint(tmp_path / "out" / tag))
    assert column(tmp_path / "out", "step")[-1] <= int(tag.removeprefix("step"))
