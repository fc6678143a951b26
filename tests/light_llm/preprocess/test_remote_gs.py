"""What is peculiar to Google Cloud Storage: its refusals, its generations, and gcsfs without keys.

The rest is in test_remote_input.py and test_remote_stopped.py, for both stores of `make stores`.
"""

from __future__ import annotations

import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from remote_corpus import lines, run

from light_jax.data import BatchLoader, TokenStream
from light_llm.errors import UserError
from light_llm.files import fetched, ranges, remote

of_gs = pytest.mark.parametrize("store", ["gs"], indirect=True, scope="module")


@of_gs
@pytest.mark.parametrize(
    "input, message",
    [
        (
            "gs://no-such-bucket/x",
            "there is no such object; `gcloud storage ls gs://no-such-bucket/",
        ),
        ("{}gone.txt", "gone.txt: there is no such object"),
        ("{}*.gone", "--input {}*.gone: there is no file in it"),
        ("gs://*/x", "the name of a bucket must be written out"),
    ],
)
def test_an_input_that_is_not_there(bucket, tmp_path, input, message):
    bucket.put("x.txt", b"text")
    with pytest.raises(UserError) as caught:
        run(tmp_path / "out", input.format(bucket.url()))
    assert message.format(bucket.url()) in str(caught.value)
    assert not (tmp_path / "out").exists()


@of_gs
@pytest.mark.parametrize("status", ["401", "403"])
@pytest.mark.parametrize("part", ["/o/x.jsonl?alt=media", ""], ids=["bytes", "everything"])
def test_a_refusal_is_told_at_once(bucket, tmp_path, status, part):
    bucket.put("x.jsonl", lines(0))
    bucket.proxy.fail(status, part, times=99)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"no access .*gcloud auth application-default login"):
        run(tmp_path / "out", bucket.url("x.jsonl"))
    assert time.monotonic() - began < 10
    assert not (tmp_path / "out").exists()


@of_gs
def test_no_keys_are_one_message(bucket, tmp_path, start, store, monkeypatch):
    """gcsfs then asks as nobody, after it has looked for the account of a machine of Google's."""
    bucket.put("x.jsonl", lines(0))
    monkeypatch.setattr(store, "options", lambda server: {"endpoint_url": server.address})
    store.environment(bucket, monkeypatch)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    bucket.proxy.fail("401", times=99)
    process = start("--input", bucket.url(), "--output", tmp_path / "out")
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 2, errors
    assert f"gs://{bucket.name}: no access (HttpError" in errors
    assert "GOOGLE_APPLICATION_CREDENTIALS" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


@of_gs
def test_each_range_is_of_the_generation_that_was_found(bucket):
    bucket.put("x", b"a" * 9000)
    path = ranges.found(bucket.url("x"))
    key, _, generation = path.state.partition("=")
    assert (key, generation.isdigit()) == ("generation", True)
    bucket.proxy.requests.clear()
    assert ranges.read(path, 0, 4096) == b"a" * 4096
    (asked,) = [path for path, _ in bucket.proxy.bodies()]
    assert asked.endswith(f"&generation={generation}")
    bucket.put("x", b"b" * 9000)
    bucket.proxy.fail("404", bucket.body("x"))  # Google's answer; the emulator keeps no generations
    with pytest.raises(ranges.Unread, match=r"/x: the object changed after the input was"):
        ranges.read(path, 0, 4096)


@of_gs
def test_a_timeout_that_is_configured_is_kept(bucket, monkeypatch):
    assert remote.filesystem("gs").requests_timeout.sock_read == remote.STALL
    remote.filesystem.cache_clear()
    monkeypatch.setitem(fsspec.config.conf["gs"], "requests_timeout", 7)
    assert remote.filesystem("gs").requests_timeout == 7


def loaded(path: str | Path) -> np.ndarray:
    stream = TokenStream(str(path), seq_len=64, seed=3)
    with BatchLoader(stream, batch_size=4, last_step=50, num_workers=2) as batches:
        return np.stack(list(batches))


@pytest.mark.parametrize("fault", ["500", "cut", "stall"])
def test_training_reads_the_shards_of_a_store(bucket, tmp_path, monkeypatch, fault):
    (tmp_path / "x.jsonl").write_bytes(lines(0, 300))
    train = run(tmp_path / "out", str(tmp_path / "x.jsonl")) / "train"
    shards = sorted(path.name for path in train.glob("*.parquet"))
    assert len(shards) > 1
    for name in shards:
        bucket.put(f"train/{name}", (train / name).read_bytes())
    monkeypatch.setenv(fetched.FOLDER, str(tmp_path / "copies"))
    for name in shards[:2]:
        bucket.proxy.fail(fault, bucket.body(f"train/{name}"), seconds=30)
    ours = loaded(bucket.url("train"))
    assert [each.times for each in bucket.proxy.faults] == [0, 0]
    np.testing.assert_array_equal(ours, loaded(train))
