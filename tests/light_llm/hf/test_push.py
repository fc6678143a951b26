"""`--push`: what the hub is asked for, by a stand-in for it on this machine."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiny_runs import REFERENCE, command

TAG = REFERENCE / "training/adamw-cosine/step0000020"


class Hub(ThreadingHTTPServer):
    """Takes files that are small enough to stand in the request of a commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.created: list[dict] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer({})

    def do_GET(self) -> None:
        self.answer({"id": "ada/model", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer({"url": f"{self.server.address}/ada/model"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            self.answer({"files": modes})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
            oid, place = "0" * 40, f"{self.server.address}/ada/model/commit/"
            self.answer({"commitUrl": place + oid, "commitOid": oid, "success": True})
        else:
            self.answer({"errors": [], "warnings": []})

    def answer(self, content: dict) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def push(folder: Path, **env: str):
    online = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1"}
    flags = ("hf", TAG, folder / "out", "--push", "ada/model")
    return command("llm-convert", *flags, cwd=folder, env=online | env)


def test_the_folder_is_uploaded_as_it_is(tmp_path, hub):
    done = push(tmp_path, HF_ENDPOINT=hub.address, HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    assert hub.tokens == {"Bearer hf_secret"}
    (created,) = hub.created
    assert (created["organization"], created["name"]) == ("ada", "model")
    assert created.get("private") or created.get("visibility") == "private"
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert f"uploaded to {hub.address}/ada/model" in done.stdout


def test_without_a_token_nothing_is_begun_and_without_a_hub_the_folder_stays(tmp_path, hub):
    done = push(tmp_path, HF_ENDPOINT=hub.address, HF_TOKEN="")
    assert done.returncode == 2
    assert "needs a token of Hugging Face; run `hf auth login`" in done.stderr
    assert not (tmp_path / "out").exists()
    assert not hub.created
    done = push(tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN="hf_secret")
    assert done.returncode == 2
    assert "the hub cannot be reached" in done.stderr
    assert "hf upload ada/model" in done.stderr
    assert (tmp_path / "out/config.json").is_file()
