"""A publication: wherever it stops it is completed, and nothing from outside is touched."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from light_llm.errors import UserError
from light_llm.preprocess.publication import complete_moves, publish_shards, staging


@pytest.mark.parametrize("crash", range(9))
def test_a_publication_is_completed_wherever_it_stopped(
    tmp_path: Path, files: Callable, monkeypatch: pytest.MonkeyPatch, crash: int
):
    """The crash-th rename, the one of moves.json being the first, does not happen."""
    output = tmp_path / "out"
    old = ("train/shard_0.parquet", "val/shard_0.parquet", "tokenizer/char_tokenizer.json")
    new = ("train/shard_1.parquet", "tokenizer/tokenizer.json", "manifest.json")
    for root, names in ((output, old), (output / ".preprocess/new", new)):
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(name)
    before, rename, calls = files(output), Path.rename, itertools.count()

    def stop(path: Path, target: Path) -> Path:
        if next(calls) == crash:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stop)
    stage = output / ".preprocess"
    with contextlib.suppress(KeyboardInterrupt):
        publish_shards(stage, output, ("",), {})
    monkeypatch.undo()
    if crash == 0:  # nothing was decided
        assert files(output) == before
        return
    if 1 < crash < 7:
        assert not (output / "train").exists()
    complete_moves(stage, output)
    assert files(output) == {name: name.encode() for name in sorted(new)}


@pytest.mark.parametrize("key", ["away", "in"])
def test_a_publication_moves_nothing_from_outside(tmp_path: Path, files: Callable, key: str):
    stage = tmp_path / "out/.preprocess"
    (stage / "new").mkdir(parents=True)
    (tmp_path / "victim").write_text("mine")
    (stage / "moves.json").write_text(
        json.dumps({"away": [], "in": [], "asked": {}} | {key: ["../victim"]})
    )
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"moves\.json: is damaged"):
        complete_moves(stage, tmp_path / "out")
    assert files(tmp_path) == before


def test_a_lock_is_not_followed(tmp_path: Path):
    """The target of a symlink in place of the lock keeps its content."""
    stage = tmp_path / "out/.preprocess"
    stage.mkdir(parents=True)
    (tmp_path / "victim").write_text("mine")
    (stage / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="lock: Too many levels"), staging(tmp_path / "out"):
        pass
    assert (tmp_path / "victim").read_text() == "mine"


def test_folders_that_were_made_and_stayed_empty_are_removed(tmp_path: Path):
    with staging(tmp_path / "a/b/out") as stage:
        assert stage.path == tmp_path / "a/b/out/.preprocess"
        with (
            pytest.raises(UserError, match="another llm-preprocess"),
            staging(tmp_path / "a/b/out"),
        ):
            pass
        (tmp_path / "a/b/out/kept").touch()
    assert os.listdir(tmp_path / "a/b/out") == ["kept"]
    with contextlib.suppress(ZeroDivisionError), staging(tmp_path / "c/d/out"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["a"]
