"""Files in an object store: the shards are those of the same files on a disk, whatever the network
does; a run that cannot read them ends with a message, and shows nothing.

moto is the S3 server, gcp-storage-emulator that of Google Cloud Storage, behind a proxy that breaks
their answers. `make stores` installs them aside, and runs this file.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from remote_corpus import assert_same_shards, forget, make_corpus, run, text
from s3_buckets import KEYS, Bucket, environment, options

from light_llm.errors import UserError
from light_llm.files import remotefile
from light_llm.preprocess import PreprocessConfig, dryrun
from light_llm.preprocess.files import find_files
from light_llm.preprocess.rows import RowText
from light_llm.preprocess.sources import read_file

of_s3 = pytest.mark.parametrize("store", ["s3"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def filled(bucket: Bucket, corpus: Path) -> Bucket:
    for path in corpus.rglob("*"):
        if path.is_file():
            bucket.put(f"data/{path.relative_to(corpus)}", path.read_bytes())
    bucket.put("data/", b"")  # as a console of a store marks a folder
    bucket.put("data-of-others/x.txt", b"of others")
    bucket.proxy.requests.clear()
    return bucket


@pytest.fixture(scope="module")
def here(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the files give."""
    return run(tmp_path_factory.mktemp("here") / "out", str(corpus))


@pytest.mark.parametrize(
    "path, options",
    [
        ("", {}),
        ("a", {}),
        ("*/*.jsonl*", {}),
        ("**/*.gz", {}),
        ("[la]*", {}),
        ("rows.parquet", {}),
        ("long.txt.zst", {}),
        ("", {"include": ("*.jsonl*", "*.csv"), "exclude": ("a-b",)}),
        ("", {"exclude": ("a/*.gz",), "shuffle_seed": 3}),
        ("", {"tokenizer": "bpe", "vocab_size": 300, "min_length": 250}),
    ],
)
def test_the_shards_are_those_of_the_same_files(filled, corpus, tmp_path, path, options):
    theirs = run(tmp_path / "theirs", f"{corpus}/{path}", **options)
    ours = run(tmp_path / "ours", filled.url(f"data/{path}"), **options)
    assert_same_shards(ours, theirs, filled.url("data/"), corpus)


@pytest.mark.parametrize(
    "fault", ["500", "503", "cut", "reset", "slow", "stall"], ids=lambda kind: f"fault-{kind}"
)
def test_what_the_network_breaks_is_asked_for_again(filled, store, corpus, here, tmp_path, fault):
    seconds = {"slow": 0.05, "stall": 30}.get(fault, 0.0)
    for key in ("rows.parquet", "lines.jsonl", "long.txt", store.LISTING):
        filled.proxy.fail(fault, key, skip=1 if key != "long.txt" else 0, seconds=seconds)
    ours = run(tmp_path / "ours", filled.url("data"))
    assert [each.times for each in filled.proxy.faults][:3] == [0, 0, 0]
    assert_same_shards(ours, here, filled.url("data/"), corpus)


@pytest.mark.parametrize("name", ["long.txt", "a/lines.jsonl.gz", "rows.parquet"])
def test_an_object_that_changes_while_it_is_read(filled, corpus, tmp_path, name):
    content = (corpus / name).read_bytes()
    changed = content[:-100] + bytes(100)  # of the same size
    filled.proxy.fail(
        "then", filled.body(f"data/{name}"), after=lambda: filled.put(f"data/{name}", changed)
    )
    with pytest.raises(UserError, match=rf"{name}: the object changed after the input was"):
        run(tmp_path / "out", filled.url("data"))
    assert not (tmp_path / "out/train").exists()


def test_each_part_of_a_parquet_file_is_fetched_once_and_other_columns_are_not(
    bucket, tmp_path, monkeypatch
):
    monkeypatch.setattr(remotefile, "BLOCK", 2**15)
    number = 4000
    blobs = [os.urandom(500) for _ in range(number)]
    table = pa.table({"text": [text(n) for n in range(number)], "blob": blobs})
    at = tmp_path / "wide.parquet"
    pq.write_table(table, at, row_group_size=1000, compression="none", use_dictionary=False)
    bucket.put("wide.parquet", at.read_bytes())
    (file,), _ = find_files([bucket.url("wide.parquet")])
    bucket.proxy.requests.clear()
    documents = [each.text for each in read_file(file.path, RowText(("text",)))]
    assert documents == table["text"].to_pylist()
    asked = [part for _, part in bucket.proxy.bodies("wide")]
    assert len(asked) == len(set(asked))
    assert len(asked) * 2**15 < 1.2 * table["text"].nbytes


def test_a_parquet_page_that_is_damaged_is_told(filled, corpus, tmp_path):
    table = pa.table({"text": [text(n) for n in range(50)]})
    pq.write_table(table, tmp_path / "x.parquet", write_page_checksum=True, compression="none")
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    at = data.index(b"alpha")
    data[at : at + 5] = b"omega"
    filled.put("damaged/x.parquet", bytes(data))
    with pytest.raises(UserError, match=r"x\.parquet: .*(CRC|checksum)"):
        run(tmp_path / "out", filled.url("damaged/"))


def test_a_place_in_a_file_is_gone_to_without_what_lies_before(bucket):
    bucket.put("x", os.urandom(100_000))
    (file,), _ = find_files([bucket.url("x")])
    bucket.proxy.requests.clear()
    with remotefile.open_remote(file.path) as stream:
        assert stream.seek(90_000) == stream.tell() == 90_000
        assert len(stream.read()) == 10_000
    starts = [int(part.removeprefix("bytes=").split("-")[0]) for _, part in bucket.proxy.bodies()]
    assert sorted(starts) == [86_016, 90_112, 94_208, 98_304]


def test_no_more_than_a_few_blocks_are_in_memory(bucket):
    bucket.put("x", os.urandom(400_000))
    (file,), _ = find_files([bucket.url("x")])
    with remotefile.open_remote(file.path) as stream:
        while stream.read(1000):
            assert len(remotefile._blocks) <= remotefile.KEPT


def test_the_estimate_is_that_of_the_same_files(filled, corpus, tmp_path):
    told = []
    for path in (corpus, filled.url("data")):
        forget()
        config = {"input": (str(path),), "output": tmp_path / "out", "tokenizer": "char"}
        found = dryrun.estimate(PreprocessConfig(**config))  # type: ignore[arg-type]
        numbers = (found.documents, found.characters, found.tokens, found.sampled, found.bytes)
        told.append((numbers, [size for _, size in found.files]))
    assert told[0] == told[1]
    assert not (tmp_path / "out").exists()


def test_a_file_is_taken_once_and_what_is_there_is_found_in_order(filled, corpus):
    found, twice = find_files([filled.url("data"), filled.url("data/*.txt"), str(corpus)])
    remote_names = [str(each.path) for each in found if "://" in str(each.path)]
    names = [str(each.path) for each in found if "://" not in str(each.path)]
    assert twice == 2
    assert [name.replace(filled.url("data"), str(corpus)) for name in remote_names] == names


@of_s3
@pytest.mark.parametrize(
    "input, message",
    [
        ("s3://no-such-bucket/x", "s3://no-such-bucket/x: there is no such object; `aws s3 ls "),
        ("{}gone.txt", "gone.txt: there is no such object"),
        ("{}*.gone", "--input {}*.gone: there is no file in it"),
        ("s3://*/x", "the name of a bucket must be written out"),
        ("s3://key:hidden@bucket/x", "--input s3://…@bucket/x: must not hold a user name"),
        ("https://127.0.0.1/x?X-Amz-Signature=hidden", "--input https://127.0.0.1/x?…: must not"),
        ("ftp://host/x", "--input ftp://host/x: must begin with gs://"),
        ("https://127.0.0.1/folder/", "is a folder, and a web server does not list its files"),
        ("https://127.0.0.1/*.txt", "is a glob, and a web server does not list its files"),
    ],
)
def test_an_input_that_is_not_there(filled, tmp_path, input, message):
    url = filled.url("data/")
    with pytest.raises(UserError) as caught:
        run(tmp_path / "out", input.format(url))
    assert message.format(url) in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@of_s3
def test_missing_and_refused_keys_are_one_message(filled, tmp_path, start, monkeypatch):
    environment(filled, monkeypatch)
    for name in KEYS:
        monkeypatch.delenv(name)
    began = time.monotonic()
    process = start("--input", filled.url("data"), "--output", tmp_path / "out")
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert time.monotonic() - began < 30
    assert f"{filled.url('data')}: no access (NoCredentialsError" in errors
    assert "AWS_ACCESS_KEY_ID" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


@of_s3
def test_a_server_that_is_gone_is_told_after_a_few_tries(filled, tmp_path, monkeypatch):
    gone = options(filled.proxy) | {"endpoint_url": "http://127.0.0.1:9"}
    monkeypatch.setitem(fsspec.config.conf, "s3", gone)
    with pytest.raises(UserError, match=r"could not be read, 4 times .*; check the connection"):
        run(tmp_path / "out", filled.url("data"))
