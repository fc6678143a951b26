"""Files of a web server, with and without byte ranges: the shards are those of the same files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_proxy import Proxy, web
from remote_corpus import assert_same_shards, forget, make_corpus, run

from light_llm.errors import UserError
from light_llm.files import fetched, remote, remotefile
from light_llm.preprocess.files import find_files

pytest.importorskip("aiohttp")

NAMES = ("a/lines.jsonl", "a/lines.jsonl.xz", "array.json", "long.txt.zst", "rows.parquet")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return make_corpus(tmp_path / "corpus")


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(fetched.FOLDER, str(tmp_path / "copies"))
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.01, 0.01))
    monkeypatch.setattr(remote, "STALL", 1.0)
    monkeypatch.setattr(remotefile, "BLOCK", 4096)
    forget()
    yield
    forget()


@pytest.fixture
def server(corpus: Path) -> Iterator[Proxy]:
    with web(corpus, ranges=True) as proxy:
        yield proxy


@pytest.mark.parametrize("ranges", [True, False])
def test_the_shards_are_those_of_the_same_files(corpus, tmp_path, ranges):
    theirs = run(tmp_path / "theirs", *(f"{corpus}/{name}" for name in NAMES))
    with web(corpus, ranges) as server:
        ours = run(tmp_path / "ours", *(f"{server.address}/{name}" for name in NAMES))
        assert_same_shards(ours, theirs, f"{server.address}/", corpus)
    copies = tmp_path / "copies"
    larger = [name for name in NAMES if (corpus / name).stat().st_size > remotefile.BLOCK]
    assert len(list(copies.iterdir()) if copies.exists() else []) == (0 if ranges else len(larger))


def test_duplicates_are_dropped_as_from_a_disk(corpus, tmp_path):
    shutil.copy(corpus / "a/lines.jsonl", corpus / "again.jsonl")
    names = ("a/lines.jsonl", "again.jsonl", "rows.parquet")
    theirs = run(tmp_path / "theirs", *(f"{corpus}/{name}" for name in names), dedupe="exact")
    once = run(tmp_path / "once", *(f"{corpus}/{name}" for name in names[::2]))
    assert_same_shards(theirs, once, f"{corpus}/", corpus)
    with web(corpus, ranges=True) as server:
        urls = (f"{server.address}/{name}" for name in names)
        ours = run(tmp_path / "ours", *urls, dedupe="exact")
        assert_same_shards(ours, theirs, f"{server.address}/", corpus)


@pytest.mark.parametrize("fault", ["500", "cut", "reset", "slow", "stall"])
def test_what_the_network_breaks_is_asked_for_again(corpus, server, tmp_path, fault):
    theirs = run(tmp_path / "theirs", *(f"{corpus}/{name}" for name in NAMES))
    seconds = {"slow": 0.05, "stall": 30}.get(fault, 0.0)
    for name in NAMES[1:]:
        server.fail(fault, name, seconds=seconds)
    server.fail("500", NAMES[0], method="HEAD")
    ours = run(tmp_path / "ours", *(f"{server.address}/{name}" for name in NAMES))
    assert [each.times for each in server.faults] == [0] * len(NAMES)
    assert_same_shards(ours, theirs, f"{server.address}/", corpus)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("name", ["long.txt", "rows.parquet"])
def test_a_file_that_changes_while_it_is_read(corpus, tmp_path, name, ranges):
    content = (corpus / name).read_bytes()

    def change() -> None:
        (corpus / name).write_bytes(content[:-100] + bytes(100))  # of the same size
        os.utime(corpus / name, (0, 0))

    with web(corpus, ranges) as server:
        server.fail("then", name, after=change)
        with pytest.raises(UserError, match=rf"{name}: the object changed"):
            run(tmp_path / "out", f"{server.address}/{name}")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_gone_or_may_not_be_read_is_told_at_once(corpus, server, tmp_path):
    with pytest.raises(UserError, match=r"/gone\.txt: there is no such object"):
        find_files([f"{server.address}/gone.txt"])
    server.fail("403", "long.txt", times=9)
    with pytest.raises(UserError, match=r"/long\.txt: no access .* no password is sent"):
        run(tmp_path / "out", f"{server.address}/long.txt")
    assert server.faults[0].times == 8


def test_a_file_without_a_size_is_refused(corpus, server):
    server.fail("200", "long.txt", method="HEAD", times=9)
    server.fail("200", "long.txt", times=9)
    with pytest.raises(UserError, match="does not say how many bytes it has; download it"):
        find_files([f"{server.address}/long.txt"])
