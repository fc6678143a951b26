"""A real server of S3, for the tests that have one (`make stores`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from faulty_proxy import Proxy, s3
from s3_buckets import Bucket, used


@pytest.fixture(scope="module")
def server() -> Iterator[Proxy]:
    with s3() as proxy:
        yield proxy


@pytest.fixture
def bucket(server: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with used(server, monkeypatch) as found:
        yield found
