"""A run in parts whose steps are killed, or die midway, is completed to the same bytes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from in_parts import Killed, asked, make, visible

from light_llm.errors import UserError
from light_llm.preprocess import preprocess
from light_llm.preprocess.parts import finish, prepare
from light_llm.preprocess.request import request_of
from light_llm.tokenizer import train_char

LONG = """import os, time
def adapt(row):
    time.sleep(0.01 if os.path.exists("slow") else 0)
    return row["text"] * 100  # a few chunks of documents in a file
"""


def test_a_killed_part_is_continued_and_the_others_do_not_wait(
    kinds: Path, tmp_path: Path, start: Callable, files: Callable
):
    (tmp_path / "long.py").write_text(LONG)
    train_char(["line row 0123456789"]).save(tmp_path / "char")
    options: dict = {"input": "in/*.[jp]*", "adapter_module": "long.py", "shard_size": 400_000}
    options |= {"tokenizer_path": "char"}
    flags = ("--input", "in/*.[jp]*", "--adapter-module", "long.py", "--shard-size", 400_000)
    flags += ("--tokenizer", "char", "--tokenizer-path", "char", "--val-fraction", 0.1)
    flags += ("--workers", 1, "--output", "out")
    preprocess(asked("whole", 2, **options))
    prepare(request_of(asked("out", 2, **options)))
    shards = tmp_path / "out/.preprocess/parts/00000/new"
    (tmp_path / "slow").touch()
    for number in (signal.SIGKILL, signal.SIGTERM):
        with start(*flags, "--parts", 2, "--part", 0) as process:
            _wait_for_shards(shards, 1 + len(list(shards.rglob("shard_?????.parquet"))))
            if number == signal.SIGKILL:
                process.send_signal(signal.SIGSTOP)
                with pytest.raises(UserError, match="part 0 is being made by another llm-prepro"):
                    make("out", 2, 0, **options)
                busy = r"written by another llm-preprocess; wait .*\(now: part 0\)"
                with pytest.raises(UserError, match=busy):
                    finish(request_of(asked("out", 2, **options)))
                with pytest.raises(UserError, match=busy):
                    preprocess(asked("out", 3, overwrite=True))
                (tmp_path / "slow").unlink()
                make("out", 2, 1, **options)
                (tmp_path / "slow").touch()
            process.send_signal(number)
            _, errors = process.communicate(timeout=30)
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
        assert "Traceback" not in errors
        assert (number == signal.SIGTERM) == ("the same command continues" in errors)
    missing = r"1 of 2 parts is not made: 0 \(\d+%\)\. Make it with --part, and repeat --finish"
    with pytest.raises(UserError, match=missing):
        finish(request_of(asked("out", 2, **options)))
    assert visible("out") == []
    (tmp_path / "slow").unlink()
    with start(*flags, "--parts", 2, "--part", 0) as process:
        out, errors = process.communicate(timeout=60)
    assert "continuing part 0 after" in errors
    assert out.startswith("part 0 of 2: ")
    finish(request_of(asked("out", 2, **options)))
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def _wait_for_shards(folder: Path, number: int) -> None:
    deadline = time.monotonic() + 40
    while len(list(folder.rglob("shard_?????.parquet"))) < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def dying_at(point: str) -> Iterator[None]:
    """Die before a rename: the third of a shard, that of moves.json, or the publication of val."""
    renamed: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        rename = Path.rename

        def die(path: Path, target: Path) -> Path:
            renamed.extend([path] if path.name.startswith("shard_") else [])
            names = {"plan": ".plan.json.tmp", "decision": ".moves.json.tmp", "middle": "val"}
            if path.name == names.get(point) or (point == "gathering" and len(renamed) == 3):
                raise Killed
            return rename(path, target)

        patch.setattr(Path, "rename", die)
        with pytest.raises(Killed):
            yield


@pytest.mark.parametrize("point", ["plan", "gathering", "decision", "middle"])
def test_a_step_that_dies_is_completed_by_the_same_command(
    kinds: Path, files: Callable, point: str
):
    whole = preprocess(asked("whole"))
    config = asked("out", save_tokenizer="copy")
    if point == "plan":
        with dying_at(point):
            prepare(request_of(config))
        with pytest.raises(UserError, match="nothing is prepared there"):
            make("out", 3, 0)
    assert prepare(request_of(config)) == prepare(request_of(config))
    for number in (1, 0, 2):
        make("out", 3, number)
    if point != "plan":
        with dying_at(point):
            finish(request_of(config))
        assert point == "middle" or visible("out") == []
    if point == "gathering":
        assert make("out", 3, 0).before  # its shards are on their way
    if point == "middle":
        with pytest.raises(UserError, match="repeat --finish"):
            make("out", 3, 0)
    for _ in range(2):
        again = finish(request_of(config))
        assert again.parts == whole.parts
        assert files(Path("out")) == files(Path("whole"))
        assert files(Path("copy")) == files(Path("whole/tokenizer"))
    with pytest.raises(UserError, match="holds tokenizer, manifest"):
        prepare(request_of(config))
