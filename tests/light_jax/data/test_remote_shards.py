"""Shards at a store: the stream of the same files, fetched as it comes to them."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import object_store
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_store import fail, installed, requests
from tiny_runs import REFERENCE, assert_same_weights, command, metrics, train_command, write_config

from light_jax.config import load_config
from light_jax.data import BatchLoader, TokenStream, footer, warn_of_overlap
from light_llm.errors import UserError
from light_llm.preprocess import manifest

CORPUS = REFERENCE / "training/adamw-cosine"
SHARDS, GROUPS, TOKENS = 6, 3, 40  # tokens of a row group, in two documents


def write_shard(path: Path, first: int, lengths: tuple[int, ...] = (30, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [list(range(first + 40 * n, first + 40 * n + k)) for n in range(GROUPS) for k in lengths]
    tokens = pa.array(rows, pa.list_(pa.int32()))
    table = pa.table({"tokens": tokens, "length": pa.array(map(len, rows), pa.int64())})
    pq.write_table(table, path, row_group_size=len(lengths))


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The store's folder, with shards in bucket/train."""
    manifest._read_remote.cache_clear()
    with object_store.used(tmp_path, monkeypatch) as folder:
        for number in range(SHARDS):
            write_shard(folder / "bucket/train" / f"shard_{number:05}.parquet", 1000 * number)
        yield folder


def stream(paths, order="sequential", **options) -> TokenStream:
    return TokenStream(paths, seq_len=8, seed=3, window_order=order, **options)


def loaded(of: TokenStream, steps: int, workers: int) -> np.ndarray:
    with BatchLoader(of, batch_size=4, last_step=steps, num_workers=workers) as batches:
        return np.stack(list(batches))


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
@pytest.mark.parametrize("workers", [0, 3])
def test_the_stream_is_that_of_the_files(store, order, workers):
    ours, files = stream("s3://bucket/train", order), stream(store / "bucket/train", order)
    assert ours.fingerprint == files.fingerprint
    steps = 2 * len(files) // 4 + 3  # into the third epoch
    np.testing.assert_array_equal(loaded(ours, steps, workers), loaded(files, steps, 0))
    np.testing.assert_array_equal(ours.windows(np.arange(50)), files.windows(np.arange(50)))
    assert sorted(requests(store, "get_file")) == sorted(set(requests(store, "get_file")))
    names = [(Path(path).name, *rows) for path, *rows in files.locate(7, 9)]
    assert [(Path(path).name, *rows) for path, *rows in ours.locate(7, 9)] == names


def test_the_url_of_a_file_is_a_store_too(store):
    at = f"file://{store}/bucket/train"
    for path in (at, f"{at}/*.parquet", [f"{at}/shard_0000{n}.parquet" for n in range(SHARDS)]):
        ours, files = stream(path), stream(store / "bucket/train")
        np.testing.assert_array_equal(loaded(ours, 40, 2), loaded(files, 40, 0))
    assert len(list((store.parent / "cache").iterdir())) == SHARDS


def test_a_start_reads_footers_alone(store):
    ours = stream("s3://bucket/train/*.parquet")
    assert ours.num_tokens == SHARDS * GROUPS * TOKENS
    assert requests(store, "get_file") == []
    assert len(requests(store, "cat_file")) == SHARDS


def test_a_footer_that_proves_no_count_fetches_its_shard(store):
    write_shard(store / "bucket/train/shard_00000.parquet", 0, (30, 0, 10))
    ours = stream("s3://bucket/train")
    assert ours.num_tokens == SHARDS * GROUPS * TOKENS
    assert requests(store, "get_file") == ["bucket/train/shard_00000.parquet"]


def test_a_server_without_parts_gives_the_whole_shard(store, monkeypatch):
    monkeypatch.setattr(footer, "TAIL", 100)
    fail(store, "cat_file", "shard_00002", "no ranges")
    assert stream("s3://bucket/train").num_tokens == SHARDS * GROUPS * TOKENS
    assert requests(store, "get_file") == ["bucket/train/shard_00002.parquet"]


def test_a_footer_longer_than_what_is_asked_for_at_first_is_read_whole(store, monkeypatch):
    monkeypatch.setattr(footer, "TAIL", 100)
    assert stream("s3://bucket/train").fingerprint == stream(store / "bucket/train").fingerprint
    assert requests(store, "get_file") == []


def test_the_next_shard_is_fetched_while_one_is_read(store):
    ours = stream("s3://bucket/train")
    order = [Path(ours.shards[int(g) // GROUPS].path).name for g in ours.epoch(0).groups]
    order = list(dict.fromkeys(order))
    with BatchLoader(ours, batch_size=1, last_step=1000, num_workers=1) as batches:
        next(batches)
        end = time.monotonic() + 20
        while len(requests(store, "get_file")) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        assert {Path(key).name for key in requests(store, "get_file")} == set(order[:2])


def test_the_last_shard_of_a_run_fetches_no_further_one(store):
    ours = stream("s3://bucket/train")
    loaded(ours, 2, 2)  # 8 windows of 8 tokens are in the first of 120
    time.sleep(0.1)
    assert len(requests(store, "get_file")) == 1


def test_a_shard_that_cannot_be_had_is_the_error_of_the_batch_that_needs_it(store):
    ours = stream("s3://bucket/train")
    fail(store, "get_file", "shard_0000", "forbidden", times=99)
    with pytest.raises(UserError, match="no access"):
        loaded(ours, 2, 2)


def test_a_shard_that_changed_since_the_start_is_refused(store):
    ours = stream("s3://bucket/train")
    for number in range(SHARDS):
        write_shard(store / f"bucket/train/shard_{number:05}.parquet", 7)
    with pytest.raises(UserError, match=r"changed since it was first looked at|could not be read"):
        loaded(ours, 2, 0)


def test_a_damaged_shard_is_named_by_its_url(store):
    at = store / "bucket/train/shard_00001.parquet"
    at.write_bytes(at.read_bytes()[:-20])
    with pytest.raises(
        UserError, match=r"s3://bucket/train/shard_00001\.parquet: the shard is trun"
    ):
        stream("s3://bucket/train")
    at.write_bytes(b"")
    with pytest.raises(UserError, match="the shard is empty"):
        stream("s3://bucket/train")


def test_files_and_urls_may_be_mixed_and_overlap_is_seen(store):
    first = "s3://bucket/train/shard_00000.parquet"
    with pytest.warns(UserWarning, match="each shard is read once"):
        mixed = stream([first, store / "bucket/train/shard_00001.parquet", first])
    assert len(mixed.shards) == 2
    with pytest.warns(UserWarning, match="a copy of s3://bucket/train/shard_00000"):
        warn_of_overlap(mixed.shards, stream(store / "bucket/train").shards[:1])


@pytest.mark.parametrize(
    "path, message",
    [
        ("s3://bucket/gone", "PATH='s3://bucket/gone' does not exist; `aws s3 ls s3://bucket/`"),
        ("s3://bucket/gone/*.parquet", "matches no object"),
        (
            "s3://bucket",
            r"is a folder without \*\.parquet objects; .*'s3://bucket/\*\*/\*\.parquet'",
        ),
        ("s3://key:hidden@bucket/train", "must not hold a user name, key or password"),
        ("ftp://host/x", "must begin with gs://"),
    ],
)
def test_a_url_that_stands_for_nothing(store, path, message):
    with pytest.raises(UserError, match=message) as caught:
        stream(path, field="PATH")
    assert "hidden" not in str(caught.value)


# Commands


def place(store: Path) -> dict[str, str]:
    """The reference corpus, put into the store; the paths of a config."""
    for side in ("train", "val"):
        shutil.copytree(CORPUS / side, store / "corpus" / side)
    return {"train_data": "s3://corpus/train", "val_data": "s3://corpus/val/*.parquet"}


def test_a_run_on_a_store_is_the_run_on_files_and_goes_on_from_it(store, tmp_path):
    paths, env = place(store), installed(tmp_path)
    files = write_config(tmp_path / "files/c.yaml", num_workers=2)
    ours = write_config(tmp_path / "ours/c.yaml", num_workers=2, **paths)
    train_command(files)
    train_command(ours, **env)
    assert_same_weights(
        files.parent / "out/final.safetensors", ours.parent / "out/final.safetensors"
    )
    assert metrics(files.parent / "out", timeless=True) == metrics(
        ours.parent / "out", timeless=True
    )
    moved = write_config(tmp_path / "files/moved.yaml", num_workers=2, num_steps=8, **paths)
    train_command(moved, "--resume", "auto", **env)
    assert metrics(files.parent / "out")[-1]["step"] == 8


def test_commands_read_a_store(store, tmp_path):
    paths, env = place(store), installed(tmp_path)
    config = write_config(tmp_path / "c.yaml", **paths)
    done = command("llm-train", config, "--check", "--json", cwd=tmp_path, env=env)
    assert json.loads(done.stdout)["ok"], done.stderr + done.stdout
    told = [
        command("llm-data", "stats", path, "--json", cwd=tmp_path, env=env).stdout
        for path in (paths["train_data"], CORPUS / "train")
    ]
    assert json.loads(told[0]) == json.loads(told[1])
    train_command(config, **env)
    evaluate = ["llm-eval", "out/final", "--json", "--data"]
    there, here = (
        json.loads(command(*evaluate, path, cwd=tmp_path, env=env).stdout)
        for path in (paths["train_data"], CORPUS / "train")
    )
    assert there["loss"] == here["loss"] > 0


def test_the_manifest_and_the_tokenizer_beside_remote_shards_are_found(store, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("the cat sat on the mat, and the dog did not. " * 40)
    made = command(
        *("llm-preprocess", "--input", "text", "--tokenizer", "char", "--output"),
        *(store / "made", "--val-fraction", "0"),
        cwd=tmp_path,
    )
    assert made.returncode == 0, made.stderr
    env = installed(tmp_path)
    shown = command("llm-data", "show", "s3://made/train", "--seq-len", 9, cwd=tmp_path, env=env)
    assert "the cat" in shown.stdout, shown.stderr + shown.stdout
    changes = {"train_data": "s3://made/train", "val_data": ..., "model": {"vocab_size": ...}}
    size = manifest.read_manifest(store / "made/manifest.json")["tokenizer"]["vocab_size"]
    assert load_config(write_config(tmp_path / "c.yaml", **changes)).model.vocab_size == size


def test_a_secret_in_a_url_is_refused_and_not_repeated(store, tmp_path):
    paths = ["s3://key:hidden@bucket/x", "https://host/x.parquet?X-Amz-Signature=hidden"]
    config = write_config(tmp_path / "c.yaml", train_data=paths)
    for more in ([], ["--check"], ["--print-config"]):
        done = command("llm-train", config, *more, cwd=tmp_path, env=installed(tmp_path))
        assert done.returncode == 2
        assert "train_data=['s3://…@bucket/x', 'https://host/x.parquet?…'] must not" in (
            done.stderr + done.stdout
        )
        assert "hidden" not in done.stderr + done.stdout
    assert not (tmp_path / "out").exists()


def test_variables_make_no_url_and_stay_in_one(store, tmp_path, monkeypatch):
    monkeypatch.setenv("BUCKET", "s3://bucket")
    with pytest.raises(UserError, match="must not become a URL by its variables"):
        load_config(write_config(tmp_path / "c.yaml", train_data="$BUCKET/train"))
    kept = write_config(tmp_path / "c.yaml", train_data="s3://$BUCKET/~/x")
    assert load_config(kept).train_data == "s3://$BUCKET/~/x"


def test_a_comparison_does_not_ask_for_what_a_checkpoint_names(store):
    from light_jax.parity.checkpoint import sample_tokens

    cfg = load_config(CORPUS / "config.yaml").model_copy(update={"val_data": "s3://bucket/train"})
    tokens, told = sample_tokens(cfg, 2, 8, random=False)
    assert tokens.shape == (2, 8)
    assert "at a URL, which is not asked" in told
    assert requests(store, "ls") == requests(store, "info") == []
