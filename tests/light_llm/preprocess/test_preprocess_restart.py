"""The same command continues a run, however it was stopped, and gives the same bytes."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tiny_runs import write_config

from light_jax.training.loop import run_config
from light_llm.errors import UserError
from light_llm.preprocess import PreprocessConfig, part, preprocess
from light_llm.preprocess.journal import Journal
from light_llm.preprocess.listing import check_vocabulary
from light_llm.preprocess.manifest import tokenizer_fingerprint
from light_llm.preprocess.stream import Position
from light_llm.tokenizer import SubwordTokenizer, load_tokenizer


@pytest.fixture
def big(tmp_path: Path, write_parquet: Callable) -> Path:
    """Enough text for a dozen shards of 100,000 tokens."""
    write_parquet(tmp_path / "big.parquet", [f"{i} {i * i} " * 500 for i in range(160)])
    return tmp_path / "big.parquet"


def stop_after(process: subprocess.Popen[str], stage: Path, shards: int, number: int) -> str:
    """Send a signal when there are this many finished shards; returns stderr."""
    deadline = time.monotonic() + 40
    there = len(
        list(stage.rglob("shard_?????.parquet"))
    )  # from a previous run: this one must have started
    while len(list(stage.rglob("shard_?????.parquet"))) < max(shards, there + 1):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in errors
    return errors


def test_a_stopped_run_is_continued_to_the_same_bytes(
    big: Path, saved_bpe: Path, tmp_path: Path, run: Callable, start: Callable, files: Callable
):
    """Killed and interrupted, while an existing output stays unchanged."""
    flags = ("--tokenizer-path", saved_bpe, "--val-fraction", 0.1, "--shard-size", 60_000)
    flags += ("--input", big.name, "--overwrite", "--output")
    whole = run(*flags, "whole")
    assert whole.returncode == 0, whole.stderr
    assert len(files(tmp_path / "whole")) > 10
    (tmp_path / "small.txt").write_text("previous")
    previous = ("--input", "small.txt", "--output", "out", "--tokenizer", "char")
    assert run(*previous).returncode == 0
    before = files(tmp_path / "out")
    stage = tmp_path / "out/.preprocess/new"
    for shards, number in ((1, signal.SIGKILL), (3, signal.SIGTERM), (5, signal.SIGINT)):
        errors = stop_after(start(*flags, "out"), stage, shards, number)
        assert number == signal.SIGKILL or "kept; the same command continues" in errors
        visible = {name: data for name, data in files(tmp_path / "out").items() if name[0] != "."}
        assert visible == before
    last = run(*flags, "out")
    assert last.returncode == 0, last.stderr
    assert "continuing a run that was stopped after" in last.stderr
    assert last.stdout == whole.stdout.replace("whole", "out")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_run_that_is_stopped_before_its_first_shard_leaves_nothing(
    big: Path, tmp_path: Path, start: Callable, files: Callable
):
    before = files(tmp_path)
    process = start("--input", big.name, "--output", "deep/out", "--vocab-size", 300)
    deadline = time.monotonic() + 60
    while not (tmp_path / "deep/out/.preprocess/new/train").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert files(tmp_path) == before
    assert not (tmp_path / "deep").exists()


def test_a_late_bad_document_keeps_what_is_done(
    tmp_path: Path,
    files: Callable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    """Repairing it changes the input, so the next run is another: it says so, until --overwrite."""
    monkeypatch.setattr(part, "SMALL_CHUNKS", 1)
    lines = [json.dumps({"text": f"document {i} " * 20}) for i in range(2000)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([*lines, "{"]))
    config = {"input": str(path), "tokenizer": "char", "shard_size": 100_000, "workers": 1}

    def go(output: str, **options: object) -> None:
        preprocess(PreprocessConfig.model_validate(config | {"output": output} | options))

    char = tmp_path / "char"
    path.write_text("\n".join(lines))
    go(str(tmp_path / "whole"), save_tokenizer=str(char))
    assert files(char) == files(tmp_path / "whole/tokenizer")
    path.write_text("\n".join([*lines, "{"]))
    config["tokenizer_path"] = str(char)
    with pytest.raises(UserError, match=r"a\.jsonl:2001: is not a line of JSON"):
        go(str(tmp_path / "out"))
    assert Journal(tmp_path / "out/.preprocess/journal.jsonl").shards
    with pytest.raises(UserError, match="min_length was 1 and is 2"):
        go(str(tmp_path / "out"), min_length=2)
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"holds 10 shards of a run .* the input changed"):
        go(str(tmp_path / "out"))
    go(str(tmp_path / "out"), overwrite=True)
    assert "what a stopped run left is discarded (10 shards)" in capsys.readouterr().err
    for split in ("train", "val"):
        assert files(tmp_path / "out" / split) == files(tmp_path / "whole" / split)
    assert not (tmp_path / "out/.preprocess").exists()


class Killed(BaseException):
    """Abrupt, like an unhandled signal."""


def failing(write: Callable, at: int, behind: bool, error: Any) -> Callable:
    """`Journal._write`, whose line number `at` fails, before it is written or behind it."""
    lines = itertools.count()

    def write_or_fail(journal: Journal, line: dict) -> None:
        fails = next(lines) == at
        if behind or not fails:
            write(journal, line)
        if fails:
            raise error

    return write_or_fail


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_commit_that_fails_leaves_no_gap_behind_it(
    big: Path, tmp_path: Path, files: Callable, monkeypatch: pytest.MonkeyPatch, error: object
):
    """Whichever of its commits it is, before or behind the line, with others waiting for theirs."""
    monkeypatch.setattr(part, "SMALL_CHUNKS", 1)  # several shards in a chunk
    fixed = {"input": (str(big),), "tokenizer": "char", "shard_size": 100_000, "val_fraction": 0.1}

    def go(output: str) -> None:
        preprocess(PreprocessConfig.model_validate(fixed | {"output": tmp_path / output}))

    write, calls = Journal._write, []
    monkeypatch.setattr(Journal, "_write", lambda *args: (calls.append(args[1]), write(*args)))
    go("whole")
    commits = [number for number, line in enumerate(calls) if line.get("shards")]
    assert len(commits) > 5
    for at in commits[:3]:
        for behind in (False, True):
            with monkeypatch.context() as patch:
                patch.setattr(Journal, "_write", failing(write, at, behind, error))
                with pytest.raises((KeyboardInterrupt, UserError)):
                    go("out")
            go("out")
            assert files(tmp_path / "out") == files(tmp_path / "whole")
            shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("point", ["tokenizer copied", "moves decided", "some moved"])
def test_a_run_that_dies_at_its_end_is_completed_by_the_same_command(
    corpus: Path,
    tmp_path: Path,
    files: Callable,
    point: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    config = PreprocessConfig(
        input=(str(corpus),),
        output=tmp_path / "out",
        tokenizer="char",
        save_tokenizer=tmp_path / "copy",
        val_fraction=0.4,
    )
    whole = preprocess(
        config.model_copy(update={"output": tmp_path / "whole", "save_tokenizer": None})
    )
    rename = Path.rename

    def die(path: Path, target: Path) -> Path:
        name = {"tokenizer copied": ".moves.json.tmp", "moves decided": "tokenizer"}.get(
            point, "val"
        )
        if path.name == name and ".preprocess" in path.parts:
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die)
        with pytest.raises(Killed):
            preprocess(config)
    capsys.readouterr()
    again = preprocess(config)
    assert (again.parts, again.unigram_entropy) == (whole.parts, whole.unigram_entropy)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert files(tmp_path / "copy") == files(tmp_path / "whole/tokenizer")
    assert ("now all are there" in capsys.readouterr().err) == (point != "tokenizer copied")
    with pytest.raises(UserError, match="holds tokenizer, manifest"):
        preprocess(config)


@pytest.mark.parametrize("damage", ["shard gone", "shard cut", "tokenizer", "journal", "moves"])
def test_what_a_stopped_run_left_is_not_trusted_blindly(
    tmp_path: Path, files: Callable, damage: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(part, "SMALL_CHUNKS", 1)
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"document {i} " * 20}) + "\n" for i in range(2000))
    )
    config = PreprocessConfig(
        input=(str(path),), output=tmp_path / "out", tokenizer="char", shard_size=100_000, workers=1
    )
    preprocess(config.model_copy(update={"output": tmp_path / "whole"}))

    def stop(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", stop)
        with pytest.raises(Killed):
            preprocess(config)
    stage = tmp_path / "out/.preprocess"
    shard = stage / "new/train/shard_00001.parquet"
    if damage == "shard gone":
        shard.unlink()
    elif damage == "shard cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "tokenizer":
        (stage / "new/tokenizer/char_tokenizer.json").unlink()
    elif damage == "journal":
        journal = stage / "journal.jsonl"
        journal.write_bytes(journal.read_bytes() + b"[]\n")
    else:
        (stage / "moves.json").touch()
    name = {"shard": "shard_00001.parquet"}.get(damage.split()[0], damage)
    with pytest.raises(UserError, match=rf"{name}.*--overwrite"):
        preprocess(config)
    preprocess(config.model_copy(update={"overwrite": True}))
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_torn_line_of_the_journal_does_not_count(tmp_path: Path):
    journal = Journal(tmp_path / "j")
    journal.ask({"options": 1})
    journal.commit("", [], Position(skip=3))
    with (tmp_path / "j").open("a") as file:
        file.write('{"part": "", "posi')
    again = Journal(tmp_path / "j")
    assert (again.asked, again.part("").position) == ({"options": 1}, Position(skip=3))
    again.commit("", [], Position(skip=4))
    assert Journal(tmp_path / "j").part("").position == Position(skip=4)


def test_the_manifest_lists_the_shards_and_training_checks_it(
    big: Path, saved_bpe: Path, bpe: SubwordTokenizer, tmp_path: Path
):
    output = tmp_path / "out"
    preprocess(PreprocessConfig(input=(str(big),), output=output, tokenizer_path=str(saved_bpe)))
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["tokenizer"]["fingerprint"] == tokenizer_fingerprint(saved_bpe)
    assert manifest["tokenizer"]["vocab_size"] == bpe.vocab_size
    assert load_tokenizer(output / "tokenizer").encode("fox") == bpe.encode("fox")
    listed = [shard["file"] for shard in manifest["shards"]]
    assert listed == ["train/shard_00000.parquet", "val/shard_00000.parquet"]
    assert manifest["documents"] == 160
    # digits alone, so that every id is small and only the manifest knows of the others
    size = 1 + max(max(ids) for ids in _ids(output / "train"))
    check_vocabulary([output / "train/shard_00000.parquet"], bpe.vocab_size, "train_data")
    listed_and_not = [output / f"train/shard_{n}.parquet" for n in ("00000", "foreign")]
    for shards in (listed_and_not, listed_and_not[::-1]):
        with pytest.raises(UserError, match=f"shard_00000.parquet was .* of {bpe.vocab_size} ids"):
            check_vocabulary(shards, size, "train_data")
    assert size < bpe.vocab_size
    config = write_config(
        tmp_path / "c.yaml", train_data=str(output / "train"), model={"vocab_size": size}
    )
    with pytest.raises(UserError, match=f"a tokenizer of {bpe.vocab_size} ids .*={size}; set"):
        run_config(config)
    assert not (tmp_path / "out/best.safetensors").exists()


def _ids(folder: Path) -> list[list[int]]:

    return pq.read_table(folder, columns=["tokens"])["tokens"].to_pylist()
