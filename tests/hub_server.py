"""A hub of Hugging Face with one dataset, org/name: its tree and files, as HfFileSystem asks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path
    read: list[str]
    before: dict[str, Callable[[], object]]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        if found := re.fullmatch(r"/api/datasets/org/name/tree/main/?(.*)", path):
            deep = "recursive=true" in url.query.lower()
            self._tree(self.root / found[1], deep)
        elif path.startswith("/api/datasets/org/name"):
            self._json({"id": "org/name", "sha": "a" * 40, "siblings": [], "tags": []})
        elif found := re.fullmatch(r"/datasets/org/name/resolve/main/(.*)", path):
            self._file(found[1])
        else:
            self._missing("RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"])).decode()
        paths = parse_qs(content)["paths"]
        self._json([self._entry(self.root / path) for path in paths])

    def _tree(self, folder: Path, deep: bool) -> None:
        if folder.is_dir():
            below = folder.rglob("*") if deep else folder.iterdir()
            self._json([self._entry(path) for path in below])
        else:
            self._missing("EntryNotFound")

    def _entry(self, path: Path) -> dict[str, object]:
        name = str(path.relative_to(self.root))
        if path.is_dir():
            return {"type": "directory", "oid": "0", "size": 0, "path": name}
        data = path.read_bytes()
        digest = hashlib.sha1(data).hexdigest()
        return {"type": "file", "oid": digest, "size": len(data), "path": name}

    def _file(self, name: str) -> None:
        self.read.append(name)
        self.before.get(name, str)()
        data = (self.root / name).read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        part = data[int(wanted[1]) : int(wanted[2]) + 1] if wanted else data
        self._answer(206 if wanted else 200, part)

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), ("Content-Type", "application/json"))

    def _missing(self, code: str) -> None:
        self._answer(404, b"", ("X-Error-Code", code))

    def _answer(self, status: int, content: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for header in headers:
            self.send_header(*header)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def hub(folder: Path, before: dict[str, Callable[[], object]]) -> Iterator[tuple[str, list[str]]]:
    """The hub's address, and the files that were read from it so far, a name for each request.

    Args:
        before: what is called before a file is sent, by its name.
    """
    read: list[str] = []
    handler = type("Hub", (_Hub,), {"root": folder, "read": read, "before": before})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", read
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
