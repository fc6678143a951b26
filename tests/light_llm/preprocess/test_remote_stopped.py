"""Files in an object store, read by a run that was stopped: it goes on without what is done.

As test_remote_input.py, for both stores of `make stores`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from remote_corpus import assert_same_shards, lines, run
from s3_buckets import Bucket

from light_llm.errors import UserError
from light_llm.files import remotefile


@pytest.fixture
def many(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Bucket, Path]:
    """A bucket and a folder, with more documents than are read before the first shard."""
    monkeypatch.setattr(remotefile, "BLOCK", 2**16)  # of a file each
    folder = tmp_path / "many"
    folder.mkdir()
    for file in range(FILES):
        rows = (json.dumps({"text": f"file {file} document {n}"}) for n in range(1500))
        (folder / f"{file:02}.jsonl").write_text("\n".join(rows))
        bucket.put(f"{file:02}.jsonl", (folder / f"{file:02}.jsonl").read_bytes())
    bucket.proxy.requests.clear()
    return bucket, folder


FILES = 12
LAST = "11.jsonl"


def stop_in_last(bucket: Bucket, tmp_path: Path) -> None:
    """Let the last file be refused, once the tokenizer was trained on it."""
    bucket.proxy.fail("403", bucket.body(LAST), times=999, skip=1)
    with pytest.raises(UserError, match=rf"{LAST}: no access"):
        run(tmp_path / "out", bucket.url())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".preprocess"]
    bucket.proxy.heal()
    bucket.proxy.requests.clear()


def test_a_run_that_ended_goes_on_without_what_is_done(many, tmp_path):
    bucket, folder = many
    stop_in_last(bucket, tmp_path)
    run(tmp_path / "out", bucket.url())
    assert {LAST} <= set(bucket.bodies()) <= {"09.jsonl", "10.jsonl", LAST}
    assert_same_shards(
        tmp_path / "out", run(tmp_path / "theirs", str(folder)), bucket.url(), folder
    )


def test_a_process_that_was_ended_goes_on(many, store, tmp_path, start, monkeypatch, saved_bpe):
    """SIGTERM while an answer does not come; then the same command."""
    bucket, folder = many
    flags = ("--tokenizer-path", saved_bpe, "--workers", 1, "--shard-size", 20_000)
    flags += ("--val-fraction", 0.1, "--input", bucket.url(), "--output", tmp_path / "out")
    store.environment(bucket, monkeypatch)
    bucket.proxy.fail("stall", bucket.body(LAST), skip=1, seconds=60)
    process = start(*flags)
    stage = tmp_path / "out/.preprocess"

    def stalled_behind_shards() -> bool:
        shards = list(stage.rglob("shard_?????.parquet"))
        return len(shards) >= 16 and not bucket.proxy.faults[0].times

    until(stalled_behind_shards, process)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=40)[1]
    assert (process.returncode, time.monotonic() - began < 20) == (143, True), errors
    assert not (tmp_path / "out/train").exists()
    bucket.proxy.requests.clear()
    process = start(*flags)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0, errors
    assert "continuing a run that was stopped" in errors
    asked = set(bucket.bodies())
    assert LAST in asked
    assert not asked & {"00.jsonl", "01.jsonl", "02.jsonl", "03.jsonl"}  # in shards by then
    options = {"tokenizer_path": str(saved_bpe), "tokenizer": None}
    theirs = run(tmp_path / "theirs", str(folder), **options)
    assert_same_shards(tmp_path / "out", theirs, bucket.url(), folder)


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_stopped_run_refuses_objects_that_changed_since(many, tmp_path):
    bucket, _ = many
    stop_in_last(bucket, tmp_path)
    bucket.put("00.jsonl", lines(5000))
    with pytest.raises(UserError, match="the input changed"):
        run(tmp_path / "out", bucket.url())
