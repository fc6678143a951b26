"""--cluster: the parts as tasks of a real Ray on this machine; each mistake is one message."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from light_llm.preprocess import PreprocessConfig, preprocess
from light_llm.preprocess.journal import Journal
from light_llm.preprocess.plan import Plan, folder_of
from light_llm.preprocess.stage import PROGRESS
from light_llm.preprocess.watch import IN_TURN, Seen, Together, write_seen
from light_llm.tokenizer import train_char

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="the extra `ray` is not installed"
)
# The process that reads is the worker; it leaves its number where the test finds it.
ADAPTER = """import os, time
def adapt(row):
    if os.path.exists("slow"):
        open(f"slow/{os.getpid()}", "a").close()
        time.sleep(0.01)
    return row["text"] * 100
"""
OPTIONS = {
    "input": "in",
    "tokenizer_path": "char",
    "adapter_module": "long.py",
    "shard_size": 400_000,
    "val_fraction": 0.1,
    "workers": 1,
    "parts": 3,
}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]


@pytest.fixture(autouse=True)
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three files, seen from tmp_path; and a folder for Ray, whose sockets need short names."""
    (tmp_path / "in").mkdir()
    for name in "abc":
        rows = (json.dumps({"text": f"{name} {i} {i * i} " * 20}) + "\n" for i in range(250))
        (tmp_path / f"in/{name}.jsonl").write_text("".join(rows))
    (tmp_path / "long.py").write_text(ADAPTER)
    train_char(["abc 0123456789"]).save(tmp_path / "char")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)  # else Ray writes one to the home folder
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as short:
        monkeypatch.setenv("RAY_TMPDIR", short)
        yield


@needs_ray
def test_a_worker_that_is_killed_changes_nothing(tmp_path: Path, start: Callable, files: Callable):
    preprocess(PreprocessConfig.model_validate(OPTIONS | {"output": "whole"}))
    (tmp_path / "slow").mkdir()
    with start(*FLAGS, "--output", "out", "--cluster", "ray") as process:
        os.kill(_worker_at_work(process, tmp_path), signal.SIGKILL)
        shutil.rmtree(tmp_path / "slow")
        out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "making 3 parts: " in errors
    assert out.startswith("train: ")
    assert "ray" not in out
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_no_ray_and_is_continued(
    tmp_path: Path, start: Callable, files: Callable, number: signal.Signals
):
    preprocess(PreprocessConfig.model_validate(OPTIONS | {"output": "whole"}))
    (tmp_path / "slow").mkdir()
    with start(*FLAGS, "--output", "out", "--cluster", "ray") as process:
        worker = _worker_at_work(process, tmp_path)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in errors
    _wait_until(lambda: not Path(f"/proc/{worker}").exists())
    shutil.rmtree(tmp_path / "slow")
    with start(*FLAGS, "--output", "out", "--cluster", "ray") as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@needs_ray
@pytest.mark.slow
def test_what_a_worker_cannot_do_is_one_message(tmp_path: Path, start: Callable):
    with (tmp_path / "in/b.jsonl").open("a") as file:
        file.write("{")
    with start(*FLAGS, "--output", "out", "--cluster", "ray") as process:
        out, errors = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert errors.splitlines()[-1].startswith("llm-preprocess: in/b.jsonl:251: is not a line of JS")
    assert "Traceback" not in errors
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".preprocess"]


def _worker_at_work(process: subprocess.Popen[str], folder: Path) -> int:
    """Wait until two workers have shards; returns the number of one."""
    parts = folder / "out/.preprocess/parts"

    def at_work() -> bool:
        assert process.poll() is None, process.communicate()
        return sum(any(path.rglob("shard_?????.parquet")) for path in parts.glob("*")) >= 2

    _wait_until(at_work)
    workers = {path.name for path in (folder / "slow").iterdir()} - {str(process.pid)}
    assert len(workers) == 2
    assert not all(_is_done(path) for path in parts.glob("*"))
    return int(workers.pop())


def _is_done(part: Path) -> bool:
    return any(each.done for each in Journal(part / "journal.jsonl").parts.values())


def _wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "address, message",
    [
        pytest.param("ray://127.0.0.1:{free}", "Ray does not listen at", marks=needs_ray),
        pytest.param(
            "ray://127.0.0.1:{mute}", "does not answer", marks=[needs_ray, pytest.mark.slow]
        ),
        ("ray://127.0.0.1", "must be ray, or ray://HOST:PORT"),
    ],
)
def test_an_address_that_does_not_answer_is_one_message(
    tmp_path: Path, start: Callable, address: str, message: str
):
    with socket.socket() as mute, socket.socket() as free:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        free.bind(("127.0.0.1", 0))
        ports = {"mute": mute.getsockname()[1], "free": free.getsockname()[1]}
        command = (*FLAGS, "--output", "out", "--cluster", address.format(**ports))
        with start(*command) as process:
            out, errors = process.communicate(timeout=70)
    assert (process.returncode, out) == (2, "")
    assert message in errors.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_of_many_parts_few_are_read_in_a_look_and_none_is_forgotten(tmp_path: Path):
    """Those that run each time, the others in turn, those that are made no more."""
    many = 10_000
    for part in range(many):
        folder_of(tmp_path, part).mkdir(parents=True)
        note = {"documents": 1, "tokens": 1, "share": 0.5}
        (folder_of(tmp_path, part) / PROGRESS).write_text(json.dumps(note))
    plan = Plan({}, "", [[("a", 1)]] * many)
    together = Together(tmp_path, plan, range(1, many))
    assert together.now() == Seen(many, many, 0.5)

    def look() -> int:
        before = _reads()
        together.look()
        return _reads() - before

    at_rest = look()
    assert at_rest < 1000
    for part in (0, 70, 9000):
        write_seen(folder_of(tmp_path, part), Seen(11, 101, 0.75))
    assert sum(look() for _ in range(many // IN_TURN + 1)) < (many // IN_TURN + 2) * 1000
    assert together.now() == Seen(many + 20, many + 200, 0.5 + 0.5 / many)  # 0 is not made here
    write_seen(folder_of(tmp_path, 9000), Seen(21, 201, 0.75))
    look()
    assert together.now().documents == many + 30
    write_seen(folder_of(tmp_path, 5), Seen(6, 6, 1.0))
    for part in range(1, many):
        together.end(part)
    assert together.now().documents == many + 35
    assert look() < 10


def _reads() -> int:
    """How often this process has read from files so far."""
    return int(Path("/proc/self/io").read_text().splitlines()[2].split()[1])


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_extra_is_named(start: Callable):
    with start(*FLAGS, "--output", "out", "--cluster", "ray") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--cluster ray needs Ray; pip install 'light-llm-jax[ray]'" in errors
