"""Files of a dataset's repository on the hub, by hf://: the shards are those of the same files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import hub
from remote_corpus import assert_same_shards, make_corpus, run
from tiny_runs import command

FLAGS = ("--tokenizer", "char", "--workers", 1, "--val-fraction", 0.1, "--shard-size", 20_000)
URL = "hf://datasets/org/name/"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return make_corpus(tmp_path / "hub/data")


@pytest.fixture
def changing() -> dict[str, Callable[[], object]]:
    """What happens before a file is sent, by its name."""
    return {}


@pytest.fixture
def read(corpus: Path, changing: dict, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    with hub(corpus.parent, changing) as (address, read):
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        yield read


@pytest.fixture
def preprocess(read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))  # with no token in it

    def called(url: str):
        flags = (*FLAGS, "--input", url, "--output", tmp_path / "ours")
        return command("llm-preprocess", *flags, cwd=tmp_path)

    return called


def test_the_shards_are_those_of_the_same_files(corpus, read, preprocess, tmp_path):
    done = preprocess(f"{URL}data")
    assert done.returncode == 0, done.stderr
    theirs = run(tmp_path / "theirs", str(corpus))
    assert_same_shards(tmp_path / "ours", theirs, URL, corpus.parent)
    assert max(Counter(read).values()) <= 2  # to train the tokenizer, and to write
    assert not any(".hidden" in name for name in read)


@pytest.mark.parametrize("path", ["gone", "data/gone.txt"])
def test_what_is_not_there_is_told(preprocess, path, tmp_path):
    done = preprocess(f"{URL}{path}")
    assert done.returncode == 2
    assert f"{URL}{path}: there is no such object" in done.stderr
    assert not (tmp_path / "ours").exists()


def test_a_file_that_changes_while_it_is_read_is_told(corpus, changing, preprocess, tmp_path):
    """The hub gives other bytes of the same size than its tree named."""
    at = corpus / "table.csv"
    changing["data/table.csv"] = lambda: at.write_bytes(at.read_bytes().swapcase())
    done = preprocess(f"{URL}data/*.csv")
    assert done.returncode == 2
    assert f"{URL}data/table.csv: the object changed" in done.stderr
    assert not (tmp_path / "ours").exists()
