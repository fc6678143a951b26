"""What a run of Weights & Biases finds of its server, on this machine, for one run.

Run as a program, it prints its port and serves until it is killed.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def env_of(port: int) -> dict[str, str]:
    """For a process that is to log to the server at this port."""
    url = f"http://127.0.0.1:{port}"
    here = {"WANDB_MODE": "online", "WANDB_BASE_URL": url, "WANDB_API_KEY": 40 * "a"}
    return here | {"WANDB_SILENT": "true", "WANDB_DISABLE_GIT": "true"}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.history: list[dict[str, Any]] = []
        """What was logged, line by line."""
        self.summary: dict[str, Any] = {}

    @property
    def env(self) -> dict[str, str]:
        return env_of(self.server_port)

    def answer(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}}
        bucket = {"id": "r", "name": given.get("name"), "displayName": "r", "config": "{}"}
        bucket["historyLineCount"] = len(self.history)
        if operation == "Viewer":
            viewer = {"id": "v", "entity": "me", "username": "me", "flags": "{}"}
            return {"viewer": viewer | {"teams": {"edges": []}}}
        if operation == "RunResumeStatus":
            lines = {"eventsLineCount": 0, "logLineCount": 0, "eventsTail": "[]", "tags": []}
            lines["historyTail"] = json.dumps([json.dumps(line) for line in self.history[-1:]])
            lines |= {"summaryMetrics": json.dumps(self.summary), "wandbConfig": '{"t": 1}'}
            return {"model": project | {"bucket": bucket | lines if self.history else None}}
        if operation == "UpsertBucket":
            bucket = bucket | {"project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": not self.history}}
        if operation == "CreateRunFiles":
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}}
        return {"serverInfo": {"cliVersionInfo": {"max_cli_version": "9.9"}, "features": []}}

    def take(self, files: dict[str, Any]) -> None:
        for name, part in files.items():
            lines = [json.loads(line) for line in part["content"] if name.startswith("wandb-")]
            if name == "wandb-history.jsonl":
                assert part["offset"] == len(self.history)
                self.history += lines
            elif name == "wandb-summary.json":
                self.summary = lines[-1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self._reply({})

    def do_PUT(self) -> None:
        self._body()
        self._reply({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/graphql":
            asked = json.loads(body)
            operation = asked.get("operationName") or asked["query"].split()[1].partition("(")[0]
            self._reply({"data": self.server.answer(operation, asked.get("variables") or {})})
            return
        if self.path.endswith("/file_stream"):
            self.server.take(json.loads(body).get("files") or {})
        self._reply({})

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body

    def _reply(self, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    alone = Server()
    print(alone.server_port, flush=True)
    alone.serve_forever()
