"""Real servers of S3 and of Google Cloud Storage, for the tests that have them (`make stores`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from types import ModuleType

import gs_buckets
import pytest
import s3_buckets
from faulty_proxy import Proxy
from remote_corpus import forget

from light_llm.files import remote, remotefile

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
