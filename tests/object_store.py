"""An object store for tests: a folder, asked through fsspec by processes that know it as s3://.

It writes down each request, and fails as it is told to. `installed` lets commands find it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec import AbstractFileSystem

ROOT = "TEST_OBJECT_STORE"


class ObjectStore(AbstractFileSystem):
    """s3://bucket/key is the file bucket/key of the folder that the variable names."""

    protocol = "s3"
    cachable = False

    @property
    def root(self) -> Path:
        return Path(os.environ[ROOT])

    def _asked(self, operation: str, path: str) -> tuple[str, str]:
        """(the key, how the request fails or ""). Notes the request."""
        key = self._strip_protocol(path)
        with (self.root / ".requests").open("a") as log:
            log.write(f"{operation} {key}\n")
        told = self.root / ".faults"
        faults = json.loads(told.read_text()) if told.exists() else []
        for fault in faults:
            if fault["operation"] == operation and fault["key"] in key and fault["times"] > 0:
                fault["times"] -= 1
                told.write_text(json.dumps(faults))
                if fault["kind"] == "forbidden":
                    raise PermissionError("Access Denied for https://s3/x?X-Signature=hidden")
                if fault["kind"] == "reset":
                    raise ConnectionResetError("https://key:hidden@s3/x: connection reset")
                return key, fault["kind"]
        return key, ""

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        key, _kind = self._asked("info", path)
        return self._info(key)

    def _info(self, key: str) -> dict[str, Any]:
        at = self.root / key
        if not at.exists():
            raise FileNotFoundError(key)
        if at.is_dir():
            return {"name": key, "size": 0, "type": "directory"}
        etag = hashlib.md5(at.read_bytes()).hexdigest()
        return {"name": key, "size": at.stat().st_size, "type": "file", "ETag": etag}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        key, _kind = self._asked("ls", path)
        at = self.root / key
        if not at.exists():
            raise FileNotFoundError(key)
        below = sorted(at.iterdir()) if at.is_dir() else [at]
        found = [self._info(str(each.relative_to(self.root))) for each in below]
        return found if detail else [each["name"] for each in found]

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        key, kind = self._asked("cat_file", path)
        if not (self.root / key).exists():
            raise FileNotFoundError(key)
        data = (self.root / key).read_bytes()
        return data if kind == "no ranges" else data[start:end]

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        key, kind = self._asked("get_file", rpath)
        data = (self.root / key).read_bytes()
        if kind == "changed":
            (self.root / key).write_bytes(data[:-1])
        Path(lpath).write_bytes(data[: len(data) // 2] if kind == "cut" else data)
        if kind == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def installed(folder: Path) -> dict[str, str]:
    """The environment of a command for which s3:// is the folder `folder`/store."""
    store, site = folder / "store", folder / "site"
    store.mkdir(parents=True, exist_ok=True)
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(
        "import fsspec\n"
        "fsspec.register_implementation('s3', 'object_store.ObjectStore', clobber=True)\n"
        "from light_llm.files import remote\n"
        "remote.WAITS = (0.01, 0.01, 0.01)\n"
    )
    tests, root = Path(__file__).parent, Path(__file__).parents[1]
    return {
        "PYTHONPATH": f"{site}:{root}:{tests}",
        ROOT: str(store),
        "LIGHT_LLM_DATA_CACHE": str(folder / "cache"),
    }


def fail(store: Path, operation: str, key: str, kind: str, times: int = 1) -> None:
    """Let the next `times` requests of this kind fail."""
    fault = {"operation": operation, "key": key, "kind": kind, "times": times}
    (store / ".faults").write_text(json.dumps([fault]))


def requests(store: Path, operation: str) -> list[str]:
    """The keys of the requests so far, in their order."""
    log = store / ".requests"
    lines = log.read_text().splitlines() if log.exists() else []
    return [key for name, key in (line.split(" ", 1) for line in lines) if name == operation]


@contextlib.contextmanager
def used(folder: Path, patch: Any) -> Iterator[Path]:
    """This process uses the store too, and has looked at nothing yet; gives the store's folder.

    Args:
        patch: pytest's monkeypatch.
    """
    from light_llm.files import fetched, remote  # a command that knows the store has its own

    for name, value in installed(folder).items():
        if name != "PYTHONPATH":
            patch.setenv(name, value)
    fsspec.register_implementation("s3", ObjectStore, clobber=True)
    patch.setattr(remote, "WAITS", (0.01, 0.01))
    patch.setattr(fetched, "_versions", {})
    remote.filesystem.cache_clear()
    yield folder / "store"
    for thread in threading.enumerate():  # or it would ask the next test's store
        if thread.name == "light-fetch":
            thread.join()
    remote.filesystem.cache_clear()
