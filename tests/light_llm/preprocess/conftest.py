"""Real servers of S3 and of Google Cloud Storage, for the tests that have them (`make stores`), and
files of all kinds."""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import gs_buckets
import pytest
import s3_buckets
from faulty_proxy import Proxy
from remote_corpus import forget

from light_llm.files import remote, remotefile
from light_llm.preprocess import part

Bucket = s3_buckets.Bucket | gs_buckets.Bucket


@pytest.fixture(scope="module", params=["s3", "gs"])
def store(request: pytest.FixtureRequest) -> ModuleType:
    """The module of a kind of store."""
    found = {"s3": s3_buckets, "gs": gs_buckets}[request.param]
    for package in found.PACKAGES:
        if importlib.util.find_spec(package) is None:  # gcsfs reads the environment at its import
            pytest.skip(f"{package} is not here")
    return found


@pytest.fixture(scope="module")
def server(store: ModuleType) -> Iterator[Proxy]:
    with store.served() as proxy:
        yield proxy


@pytest.fixture
def bucket(store: ModuleType, server: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket, of which this process reads blocks of 4 KiB."""
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.01, 0.01))
    monkeypatch.setattr(remote, "STALL", 1.0)
    monkeypatch.setattr(remotefile, "BLOCK", 4096)
    forget()
    yield store.used(server, monkeypatch)
    server.heal()
    forget()


@pytest.fixture
def kinds(tmp_path: Path, write_parquet: Callable, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of all kinds, some of a dozen shards of 20,000 tokens, one of white space; seen from
    tmp_path."""
    folder = tmp_path / "in"
    folder.mkdir()
    lines = [json.dumps({"text": f"line {i} {i * i} " * 20}) + "\n" for i in range(400)]
    (folder / "a.jsonl").write_text("".join(lines[:200]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[200:]).encode(), mtime=0))
    write_parquet(folder / "c.parquet", [f"row {i} {i * i * i} " * 30 for i in range(150)])
    (folder / "d.csv").write_text("text\n" + "".join(f"cell {i} {i + 7}\n" for i in range(300)))
    (folder / "e.txt").write_text(" \n" * 5000)
    (folder / "f.txt").write_text("the last text, of some words " * 40)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(part, "SMALL_CHUNKS", 1)
    return folder
