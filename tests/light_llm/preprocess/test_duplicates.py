"""Documents whose text an earlier one has are counted, however a run is made or stopped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from light_llm.cli.preprocess import print_summary
from light_llm.errors import UserError
from light_llm.preprocess import PreprocessConfig, part, preprocess, texthashes
from light_llm.preprocess.journal import Journal
from light_llm.preprocess.making import make_part
from light_llm.preprocess.manifest import MANIFEST
from light_llm.preprocess.parts import finish, prepare
from light_llm.preprocess.request import request_of
from light_llm.preprocess.resume import hash_older
from light_llm.preprocess.texthashes import count_distinct, write_hashes


class Killed(BaseException):
    """Abrupt, like an unhandled signal."""


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Three files with 3,000 documents together, of 2,000 texts."""
    folder = tmp_path / "copied"
    folder.mkdir()
    for number in range(3):
        some = [f"text {each % 2000} of many " * 3 for each in range(number, 3000, 3)]
        (folder / f"{number}.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in ["", *some])
        )
    return folder


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks, many passes."""
    monkeypatch.setattr(part, "SMALL_CHUNKS", 1)
    monkeypatch.setattr("light_llm.preprocess.stream.CHUNK_DOCUMENTS", 100)
    monkeypatch.setattr(texthashes, "AT_ONCE", 64)
    monkeypatch.setattr(texthashes, "MORE", 2)


def config(source: Path, output: Path, **more: object) -> PreprocessConfig:
    usual = {"tokenizer": "char", "workers": 1, "val_fraction": 0.2, "shard_size": 9000}
    return PreprocessConfig.model_validate(
        usual | {"input": str(source), "output": str(output)} | more
    )


def by_hand(output: Path, rows: Callable) -> int:
    texts = [row["text"] for row in rows(output)]
    return len(texts) - len(set(texts))


def counted(output: Path) -> int:
    return json.loads((output / MANIFEST).read_text())["duplicates"]


@pytest.mark.parametrize("more", [{}, {"shuffle_seed": 3}, {"parts": 3}, {"val_fraction": 0}])
def test_a_run_counts_what_is_twice_in_its_shards(
    copied: Path, tmp_path: Path, rows: Callable, capsys: pytest.CaptureFixture, more: dict
):
    summary = preprocess(config(copied, tmp_path / "out", **more))
    assert (
        summary.duplicates == counted(tmp_path / "out") == by_hand(tmp_path / "out", rows) == 1000
    )
    print_summary(summary)
    expected = "duplicates: 1,000 documents (33.3%) have the text of an earlier one; --dedupe exact"
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("commits", [1, 5, 9])
def test_a_stopped_run_counts_what_it_would_have_counted(
    copied: Path, tmp_path: Path, files: Callable, commits: int
):
    """Dead before a line of the journal, whose hashes are on the disk already."""
    preprocess(config(copied, tmp_path / "whole"))
    real, done = Journal.commit, []

    def die(self: Journal, *args: object) -> None:
        done.append(args)
        if len(done) > commits:
            raise Killed
        real(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "commit", die)
        with pytest.raises(Killed):
            preprocess(config(copied, tmp_path / "out"))
    assert len(Journal(tmp_path / "out/.preprocess/journal.jsonl").hash_files) >= commits
    preprocess(config(copied, tmp_path / "out"))
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def killed_before_its_end(copied: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that dies when all shards but the last are committed."""

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", die)
        with pytest.raises(Killed):
            preprocess(config(copied, output))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "flipped": lambda path: path.write_bytes(
        bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]
    ),
    "cut": lambda path: os.truncate(path, 8),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damaged_hashes_are_told_and_nothing_is_shown(
    copied: Path, tmp_path: Path, files: Callable, monkeypatch: pytest.MonkeyPatch, damage: str
):
    preprocess(config(copied, tmp_path / "whole"))
    killed_before_its_end(copied, tmp_path / "out", monkeypatch)
    DAMAGE[damage](tmp_path / "out/.preprocess/hashes/00002")
    with pytest.raises(UserError, match=r"hashes/00002: .*begin again with --overwrite"):
        preprocess(config(copied, tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".preprocess"]
    preprocess(config(copied, tmp_path / "out", overwrite=True))
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.fixture
def older(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a run of a version that kept no hashes left, with several shards."""
    killed_before_its_end(copied, tmp_path / "out", monkeypatch)
    path = tmp_path / "out/.preprocess/journal.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line.pop("hashes", None)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree(path.parent / "hashes")
    return path


def test_shards_of_an_earlier_version_are_hashed_one_by_one(older: Path):
    """Also where that is stopped: so no more are in memory than while a shard is made."""
    shards = Journal(older).parts[""].unhashed
    assert len(shards) == len(Journal(older).shards) > 5
    real, written = Journal.hash_one, []

    def die(self: Journal, *args: object) -> None:
        if len(written) == 3:
            raise Killed
        written.append(args)
        real(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "hash_one", die)
        with pytest.raises(Killed):
            hash_older(Journal(older), older.parent / "new")
    assert Journal(older).parts[""].unhashed == shards[3:]
    hash_older(Journal(older), older.parent / "new")
    journal = Journal(older)
    assert not journal.parts[""].unhashed
    documents = [shard.documents for shard in shards]
    assert all(file.hashes <= n for file, n in zip(journal.hash_files, documents, strict=True))


def test_a_run_of_an_earlier_version_counts_what_it_would_have_counted(
    copied: Path, older: Path, tmp_path: Path, files: Callable
):
    preprocess(config(copied, tmp_path / "whole"))
    assert preprocess(config(copied, tmp_path / "out")).duplicates == 1000
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_damaged_hashes_of_a_part_stop_finish_until_it_is_made_again(
    copied: Path, tmp_path: Path, files: Callable
):
    asked = config(copied, tmp_path / "out", parts=3)
    preprocess(config(copied, tmp_path / "whole", parts=3))
    prepare(request_of(asked))
    for number in range(3):
        make_part(request_of(asked), number)
    DAMAGE["flipped"](tmp_path / "out/.preprocess/parts/00001/hashes/00001")
    with pytest.raises(UserError, match=r"make the part again with --part 1 --overwrite"):
        finish(request_of(asked))
    make_part(request_of(asked.model_copy(update={"overwrite": True})), 1)
    assert finish(request_of(asked)).duplicates == 1000
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@given(
    st.lists(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 9), min_size=1), max_size=5),
    st.integers(1, 20),
)
def test_any_hashes_are_counted_in_ranges_as_at_once(
    tmp_path_factory: pytest.TempPathFactory, hashes: list[list[int]], at_once: int
):
    folder = tmp_path_factory.mktemp("any")
    written = [
        (write_hashes(folder / str(number), [np.array(some, np.uint64)]), "")
        for number, some in enumerate(hashes)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texthashes, "AT_ONCE", at_once)
        assert count_distinct(written) == len({each for some in hashes for each in some})
