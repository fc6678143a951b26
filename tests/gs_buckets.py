"""Buckets of an emulator of Google Cloud Storage, behind a proxy, for tests that read by URL."""

from __future__ import annotations

import itertools
import json
import urllib.request
from urllib.parse import quote, unquote

import fsspec
import pytest
from faulty_proxy import Proxy, gs

served = gs
PACKAGES = ("gcsfs", "gcp_storage_emulator")
LISTING = "delimiter"
"""What the path of a request for a list of objects has."""
_buckets = itertools.count()


class Bucket:
    def __init__(self, proxy: Proxy) -> None:
        self.proxy, self.name = proxy, f"bucket-{next(_buckets)}"
        self._post(
            "/storage/v1/b?project=p", json.dumps({"name": self.name}).encode(), "application/json"
        )

    def put(self, name: str, content: bytes) -> None:
        at = f"/upload/storage/v1/b/{self.name}/o?name={quote(name, safe='')}&uploadType="
        if content:
            self._post(f"{at}media", content, "application/octet-stream")
        else:  # which the emulator takes as a part alone
            part = "--b\r\nContent-Type: {}\r\n\r\n{}\r\n"
            kinds = ("application/json", "{}"), ("application/octet-stream", "")
            parts = "".join(part.format(*kind) for kind in kinds) + "--b--\r\n"
            self._post(f"{at}multipart", parts.encode(), "multipart/related; boundary=b")

    def _post(self, path: str, content: bytes, kind: str) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.proxy.upstream}{path}",
            data=content,
            headers={"Content-Type": kind},
        )
        urllib.request.urlopen(request).close()

    def body(self, name: str) -> str:
        """What the path of a request for the bytes of an object has, and of none for others."""
        return f"/{self.name}/o/{quote(name, safe='')}?alt=media"

    def url(self, path: str = "") -> str:
        return f"gs://{self.name}/{path}"

    def bodies(self) -> list[str]:
        """Which objects were read, request by request."""
        paths = (path.partition("?")[0] for path, _ in self.proxy.bodies(f"/{self.name}/"))
        return [unquote(path.rpartition("/")[2]) for path in paths]


def used(server: Proxy, patch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket, which this process finds."""
    patch.setitem(fsspec.config.conf, "gs", options(server))
    # or gcsfs asks about each bucket by gRPC, which the emulator has not
    patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    return Bucket(server)


def options(server: Proxy) -> dict[str, object]:
    return {"endpoint_url": server.address, "token": "anon"}


def environment(bucket: Bucket, patch: pytest.MonkeyPatch) -> None:
    """Let commands find the server."""
    patch.setenv("FSSPEC_GS", json.dumps(options(bucket.proxy)))
