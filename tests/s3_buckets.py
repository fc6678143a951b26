"""Buckets of a real S3 server, behind a proxy, for tests that read them by URL."""

from __future__ import annotations

import itertools
import json
import os

import fsspec
import pytest
from faulty_proxy import Proxy, s3

served = s3
PACKAGES = ("s3fs", "moto")
LISTING = "list-type"
"""What the path of a request for a list of objects has."""
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hidden"}
_buckets = itertools.count()


class Bucket:
    def __init__(self, proxy: Proxy) -> None:
        import boto3

        self.proxy, self.name = proxy, f"bucket-{next(_buckets)}"
        address = f"http://127.0.0.1:{proxy.upstream}"
        named = {"aws_access_key_id": "key", "aws_secret_access_key": "hidden"}
        self._client = boto3.client("s3", "us-east-1", endpoint_url=address, **named)
        self._client.create_bucket(Bucket=self.name)

    def put(self, name: str, content: bytes) -> None:
        self._client.put_object(Bucket=self.name, Key=name, Body=content)

    def body(self, name: str) -> str:
        """What the path of a request for the bytes of an object has, and of none for others."""
        return f"/{self.name}/{name}"

    def url(self, path: str = "") -> str:
        return f"s3://{self.name}/{path}"

    def bodies(self) -> list[str]:
        """Which objects were read, request by request."""
        return [path.removeprefix(f"/{self.name}/") for path, _ in self.proxy.bodies(self.name)]


def used(server: Proxy, patch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket, which this process finds."""
    for name, value in KEYS.items():
        patch.setenv(name, value)
    patch.setenv("AWS_CONFIG_FILE", os.devnull)
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    patch.setitem(fsspec.config.conf, "s3", options(server))
    return Bucket(server)


def options(server: Proxy) -> dict[str, object]:
    patience = {"read_timeout": 1, "connect_timeout": 2, "retries": {"max_attempts": 1}}
    return {"endpoint_url": server.address, "config_kwargs": patience}


def environment(bucket: Bucket, patch: pytest.MonkeyPatch) -> None:
    """Let commands find the server."""
    found = options(bucket.proxy) | {"config_kwargs": {"read_timeout": 60}}
    patch.setenv("FSSPEC_S3", json.dumps(found))
