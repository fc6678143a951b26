"""A TCP proxy before a web server: it notes each request, and breaks answers as it is told."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import logging
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PIECE = 2**14
UNSENT = {"connection", "keep-alive", "transfer-encoding", "server", "date"}


@dataclass
class Fault:
    """The next `times` answers to a method on paths with `key` are of this `kind`: a status alone
    (`500`), `cut` (in the middle of the body), `reset` (before any answer), `slow` (the body in
    pieces), `stall` (half of the body, and then nothing for `seconds`), or `then` (whole; `after`
    is called)."""

    kind: str
    key: str = ""
    method: str = "GET"
    times: int = 1
    skip: int = 0
    """So many such requests are answered as they are before that."""
    seconds: float = 0.0
    after: Callable[[], object] | None = None


@dataclass
class Proxy:
    port: int
    upstream: int
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and range of each, in order."""
    ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def heal(self) -> None:
        self.faults.clear()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fail(self, kind: str, key: str = "", **more) -> None:
        self.faults.append(Fault(kind, key, **more))

    def bodies(self, key: str = "") -> list[tuple[str, str]]:
        """Path and range of the requests for the bytes of objects whose path has `key`."""
        asked = [(path, part) for method, path, part in self.requests if method == "GET"]
        if any("alt=media" in path for path, _ in asked):  # Google's says which are for bytes
            asked = [(path, part) for path, part in asked if "alt=media" in path]
        return [(path, part) for path, part in asked if key in path and "list-type" not in path]

    def fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.method == method and fault.key in path and fault.times > 0:
                    if fault.skip:
                        fault.skip -= 1
                        return None
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def handle_any(self) -> None:
        proxy, length = self.proxy, int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length)
        proxy.requests.append((self.command, self.path, self.headers.get("Range", "")))
        fault = proxy.fault(self.command, self.path) or Fault("none")
        if fault.kind == "reset":
            self._cut()
            return
        if fault.kind.isdigit():
            self.send_response(int(fault.kind))
            if fault.kind != "200":  # which then says no size
                self.send_header("Content-Length", "0")
            self.close_connection = True
            self.end_headers()
            return
        upstream = http.client.HTTPConnection("127.0.0.1", proxy.upstream, timeout=60)
        upstream.request(self.command, self.path, content or None, dict(self.headers.items()))
        answer = upstream.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in UNSENT | {"content-length"}:
                self.send_header(name, value)
        told = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(body))
        if told is not None:
            self.send_header("Content-Length", told)
        self.end_headers()
        upstream.close()
        self._send(body, fault)

    def _send(self, body: bytes, fault: Fault) -> None:
        half = len(body) // 2
        if fault.kind == "cut":
            self.wfile.write(body[:half])
            self._cut()
        elif fault.kind == "stall":
            self.wfile.write(body[:half])
            self.proxy.ended.wait(fault.seconds)
            self._cut()
        elif fault.kind == "slow":
            for at in range(0, len(body), PIECE):
                self.wfile.write(body[at : at + PIECE])
                time.sleep(fault.seconds)
        else:
            self.wfile.write(body)
            if fault.after is not None:
                fault.after()

    def _cut(self) -> None:
        """End the connection as a machine that is gone does."""
        self.wfile.flush()
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        self.close_connection = True

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # who asked is gone, or was cut off
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *_: object) -> None:
        pass

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any


@contextlib.contextmanager
def before(upstream: int) -> Iterator[Proxy]:
    """A proxy before the server at a port of this machine."""
    handler = type("Handler", (_Handler,), {})
    with _serving(handler) as port:
        proxy = handler.proxy = Proxy(port, upstream)
        try:
            yield proxy
        finally:
            proxy.ended.set()


class _Files(SimpleHTTPRequestHandler):
    """Files with ETags, and parts of them where a range is asked for."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        start, stop, status = 0, len(data), 200
        if found := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            start, stop, status = int(found[1]), min(len(data), int(found[2]) + 1), 206
        self.send_response(416 if start >= stop > 0 else status)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{hashlib.md5(data).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[start:stop])

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


class _Plain(SimpleHTTPRequestHandler):
    """Files, always whole."""

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def web(folder: Path, ranges: bool) -> Iterator[Proxy]:
    """A web server with the files of a folder, behind a proxy."""
    kind = functools.partial(_Files if ranges else _Plain, directory=str(folder))
    with _serving(kind) as port, before(port) as proxy:
        yield proxy


@contextlib.contextmanager
def _serving(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)  # type: ignore[arg-type]
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def s3() -> Iterator[Proxy]:
    """moto's server of S3, which keeps objects in memory, behind a proxy."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        with before(server.get_host_and_port()[1]) as proxy:
            yield proxy
    finally:
        server.stop()


@contextlib.contextmanager
def gs() -> Iterator[Proxy]:
    """An emulator of Google Cloud Storage, which keeps objects in memory, behind a proxy."""
    from gcp_storage_emulator.server import create_server

    for name in ("gcp_storage_emulator", "api.object", "api.bucket"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    server = create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    try:
        with before(server._api._httpd.server_port) as proxy:
            yield proxy
    finally:
        server.stop()
