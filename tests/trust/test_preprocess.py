"""llm-preprocess on others' files: nothing outside is touched, nothing foreign is deleted."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_runs import BIN

from light_llm.errors import UserError
from light_llm.files.disk import locked
from light_llm.preprocess import PreprocessConfig, opening, part, preprocess
from light_llm.preprocess.corpus import FileCorpus
from light_llm.preprocess.files import find_files
from light_llm.preprocess.journal import Damaged, Journal
from light_llm.preprocess.publication import staging
from light_llm.preprocess.rows import RowText
from light_llm.preprocess.stage import MARK


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": f"document {i} " * 20}) for i in range(1200)]
    path.write_text("\n".join(lines))
    return path


def go(text: Path, output: Path, **options: Any) -> None:
    fixed = {"input": str(text), "output": str(output), "tokenizer": "char", "workers": 1}
    preprocess(PreprocessConfig.model_validate(fixed | {"shard_size": 100_000} | options))


class Killed(BaseException):
    """Abrupt, like an unhandled signal."""


@pytest.fixture
def stop(text: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Leave the stage of a run that was killed after its first shards."""

    def run(output: Path) -> Path:
        def die(*_: object) -> None:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(part, "SMALL_CHUNKS", 1)
            patch.setattr(Journal, "finish", die)
            with pytest.raises(Killed):
                go(text, output)
        return output / ".preprocess"

    return run


def tree(folder: Path) -> dict[str, bytes | str]:
    """All names below a folder, links with their targets, files with their content."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = ""
    return found


def write_moves(stage: Path, **moves: Any) -> None:
    stage.mkdir(parents=True, exist_ok=True)
    (stage / "moves.json").write_text(json.dumps({"away": [], "in": [], "asked": {}} | moves))


@pytest.mark.parametrize("name", ["../victim", "..", ".", "/etc", "a/b", ".git", "a\0b", 7, "", []])
def test_a_name_in_moves_json_leads_nowhere_else(text: Path, tmp_path: Path, name: Any):
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/keep").write_text("mine")
    (tmp_path / "out/.git").mkdir(parents=True)
    for key in ("away", "in"):
        write_moves(tmp_path / "out/.preprocess", **{key: [name]})
        before = tree(tmp_path)
        with pytest.raises(UserError, match=r"moves\.json: is damaged"):
            go(text, tmp_path / "out")
        after = tree(tmp_path)
        after.pop(f"out/.preprocess/{MARK}", None)
        after.pop("out/.preprocess/lock", None)
        before.pop(f"out/.preprocess/{MARK}", None)
        before.pop("out/.preprocess/lock", None)
        assert after == before


def test_moves_json_moves_only_what_a_run_writes(text: Path, tmp_path: Path):
    out = tmp_path / "out"
    (out / "thesis").mkdir(parents=True)
    (out / "thesis/chapter.tex").write_text("mine")
    (out / "notes").write_text("mine")
    for moves in ({"away": ["thesis"]}, {"away": ["notes"]}):
        write_moves(out / ".preprocess", **moves)
        with pytest.raises(UserError, match="is not a shard"):
            go(text, out)
    (out / ".preprocess/new/tokenizer").mkdir(parents=True)  # a folder that came with a file in it
    (out / ".preprocess/new/manifest.json").write_text("{}")
    (out / "manifest.json").write_text("mine")
    write_moves(out / ".preprocess", **{"in": ["manifest.json"]})
    with pytest.raises(UserError, match=r"manifest\.json would be replaced"):
        go(text, out)
    assert (out / "thesis/chapter.tex").read_text() == (out / "notes").read_text() == "mine"
    assert (out / "manifest.json").read_text() == "mine"


LINKED = {
    "": "is a link",
    "lock": "Too many levels",
    "journal.jsonl": "is a link",
    "moves.json": "is a link",
    ".moves.json.tmp": "is a link",
    "new": "is a link",
    "old": "is a link",
    "loaded": "is a link",
    "new/train": "is a link",
    "new/tokenizer": "is a link",
    "new/manifest.json": "is a link",
    "new/train/shard_00000.parquet.writing": "is a link",
}


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("name", LINKED)
def test_no_link_in_the_stage_is_followed(text: Path, tmp_path: Path, name: str, marked: bool):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "shard_notes").write_text("mine")
    (tmp_path / "notes").write_text("mine")
    stage = tmp_path / "out/.preprocess"
    path = stage / name
    path.parent.mkdir(parents=True)
    if marked and name:
        with staging(tmp_path / "other") as other:
            shutil.copy(other.path / MARK, stage / MARK)
    is_file = "." in path.name[1:] or path.name == "lock"
    path.symlink_to(tmp_path / "notes" if is_file else victim)
    before = tree(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(UserError, match=LINKED[name]):
            go(text, tmp_path / "out", overwrite=overwrite)
        assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    ["mine.txt", "new/mine", "old/tokenizer/mine", "lock", "new/train/shard_notes", "loaded"],
)
def test_a_stage_that_this_program_did_not_make_is_refused(text: Path, tmp_path: Path, name: str):
    path = tmp_path / "out/.preprocess" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(UserError, match=f"{path}: "):
        go(text, tmp_path / "out", overwrite=True)
    assert path.read_text() == "mine"


def test_a_fifo_in_place_of_a_file_does_not_hang(text: Path, tmp_path: Path):
    for name in ("lock", "journal.jsonl", "moves.json", "new/manifest.json"):
        path = tmp_path / f"out-{name.replace('/', '-')}/.preprocess" / name
        path.parent.mkdir(parents=True)
        os.mkfifo(path)
        with pytest.raises(UserError, match="is a FIFO"):
            go(text, path.parents[1 + name.count("/")])
    out = tmp_path / "out"
    out.mkdir()
    os.mkfifo(out / "manifest.json")
    with pytest.raises(UserError, match="is not a manifest"):
        go(text, out)
    with pytest.raises(UserError, match="is a FIFO"):
        find_files([str(out / "manifest.json")])


def test_a_stage_from_a_version_before_the_mark_is_continued(
    text: Path, tmp_path: Path, stop: Callable, capsys: pytest.CaptureFixture
):
    go(text, tmp_path / "whole")
    stage = stop(tmp_path / "out")
    (stage / MARK).unlink()
    shutil.rmtree(stage / "hashes")  # which is younger
    lines = [json.loads(line) for line in (stage / "journal.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("hashes", None)
    (stage / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    go(text, tmp_path / "out")
    assert "continuing a run that was stopped" in capsys.readouterr().err
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_overwriting_deletes_only_what_a_run_wrote(text: Path, tmp_path: Path):
    out, copy = tmp_path / "out", tmp_path / "copy"
    go(text, out)
    for name in ("tokenizer/README.md", "train/notes.txt", "val/shard_1.txt"):
        (out / name).write_text("mine")
        before = tree(out)
        with pytest.raises(UserError, match=f"{name} is not a"):
            go(text, out, overwrite=True)
        assert tree(out) == before
        (out / name).unlink()
    (out / "tokenizer/sub").mkdir()
    with pytest.raises(UserError, match="sub is not a file of a tokenizer"):
        go(text, out, overwrite=True)
    (out / "tokenizer/sub").rmdir()
    copy.mkdir()
    (copy / "README.md").write_text("mine")
    (copy / "tokenizer_config.json").write_text("mine")
    with pytest.raises(UserError, match=r"holds tokenizer_config\.json already"):
        go(text, tmp_path / "new", save_tokenizer=str(copy))
    (tmp_path / "secret").write_text("mine")
    (copy / "char_tokenizer.json").symlink_to(tmp_path / "secret")
    (copy / ".char_tokenizer.json.tmp").symlink_to(tmp_path / "secret")
    go(text, out, overwrite=True, save_tokenizer=str(copy))
    assert (tmp_path / "secret").read_text() == (copy / "README.md").read_text() == "mine"
    assert not (copy / "char_tokenizer.json").is_symlink()


def test_what_came_while_the_run_worked_is_not_replaced(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    finish, out = Journal.finish, tmp_path / "out"

    def and_somebody_writes(*args: Any) -> None:
        finish(*args)
        (out / "train").mkdir()
        (out / "train/mine").write_text("mine")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", and_somebody_writes)
        with pytest.raises(UserError, match="mine is not a shard"):
            go(text, out)
    assert (out / "train/mine").read_text() == "mine"
    shutil.rmtree(out / "train")
    go(text, out)
    assert not (out / ".preprocess").exists()


@pytest.mark.parametrize("how", ["swapped", "unlocked", "gone"])
def test_a_folder_that_is_swapped_during_a_run_is_left_alone(
    text: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
):
    out, other = tmp_path / "out", tmp_path / "other"
    go(text, other)
    before, commit = tree(other), Journal.finish

    def swap(*args: Any) -> None:
        if how == "unlocked":
            (out / ".preprocess/lock").unlink()
        else:
            out.rename(tmp_path / "aside")
        if how == "swapped":
            out.symlink_to(other)
        commit(*args)

    monkeypatch.setattr(Journal, "finish", swap)
    with pytest.raises(UserError, match="no longer the folder that this run began in"):
        go(text, out)
    assert tree(other) == before


def test_a_lock_knows_its_file(tmp_path: Path):
    with locked(tmp_path / "lock", "held") as lock:
        lock.check("gone")
        (tmp_path / "lock").unlink()
        with pytest.raises(UserError, match="gone"):
            lock.check("gone")
        (tmp_path / "lock").touch()
        assert not lock.holds()


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../../victim"},
        {"file": "train/../../../x/train/shard_0.parquet"},
        {"file": ".x/train/shard_00000.parquet"},
        {"tokens": -1},
        {"tokens": 10**30},
        {"tokens": True},
        {"documents": 1.5},
        {"sha256": None},
        {"more": 1},
    ],
)
def test_a_journal_is_not_believed(tmp_path: Path, change: dict[str, Any]):
    row = {"file": "train/shard_00000.parquet", "sha256": "0"}
    row |= dict.fromkeys(("documents", "tokens", "characters", "bytes"), 1)
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps({"part": "", "shards": [row | change]}) + "\n")
    with pytest.raises(Damaged, match=r"journal\.jsonl:1: is not a line that a run wrote"):
        Journal(path)


def test_what_a_journal_says_is_compared_with_what_is_there(
    text: Path, tmp_path: Path, stop: Callable
):
    stage = stop(tmp_path / "out")
    journal = stage / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    number = max(n for n, line in enumerate(lines) if "shards" in line)
    whole = lines[number]
    one = whole["shards"][0] | {"tokens": 10**9}
    for change, message in (
        ({"shards": [one, *whole["shards"][1:]]}, "the stopped run wrote"),
        ({"position": {"place": None, "skip": -1}}, "is not a line that a run wrote"),
        (
            {"position": {"place": {"at": [-1, 0], "skipped": {}}, "skip": 0}},
            "place in its input is not valid",
        ),
    ):
        lines[number] = whole | change
        journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(UserError, match=message):
            go(text, tmp_path / "out")
    journal.write_text("[" * 100_000 + "\n")
    with pytest.raises(Damaged, match="too deep"):
        Journal(journal)


def test_a_second_name_of_the_journal_keeps_its_content(text: Path, tmp_path: Path, stop: Callable):
    stage = stop(tmp_path / "out")
    os.link(stage / "journal.jsonl", tmp_path / "backup")
    before = (tmp_path / "backup").read_bytes()
    go(text, tmp_path / "out")
    assert (tmp_path / "backup").read_bytes() == before


def documents(path: Path) -> list[str]:
    corpus = FileCorpus(find_files([str(path)])[0], RowText(("text",)))
    return [document.text for document in corpus]


def test_a_line_in_a_small_compressed_file_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(opening, "LONGEST_LINE", 2**20)
    codec = pa.Codec("zstd")
    line = b'{"text": "a"}\n'
    long = line + b'{"text": "' + b"x" * 2**24
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(long))
    (tmp_path / "a.jsonl.zst").write_bytes(codec.compress(long, asbytes=True))
    (tmp_path / "a.jsonl").write_bytes(long)
    for name in ("a.jsonl.gz", "a.jsonl.zst", "a.jsonl"):
        with pytest.raises(UserError, match=rf"{name}:2: the line has more than 1,048,576 bytes"):
            documents(tmp_path / name)
    within = line + b'{"text": "' + b"x" * (2**20 - 13) + b'"}\n'
    (tmp_path / "b.jsonl").write_bytes(within)
    assert [len(document) for document in documents(tmp_path / "b.jsonl")] == [1, 2**20 - 13]
    (tmp_path / "c.jsonl").write_bytes(b'{"text": ' + b"[" * 200_000 + b"\n")
    with pytest.raises(UserError, match=r"c\.jsonl:1: is not a line of JSON"):
        documents(tmp_path / "c.jsonl")


def test_a_parquet_text_file_claims_only_what_it_can_hold(tmp_path: Path):
    path = tmp_path / "a.parquet"
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * (2**26 + 1), pa.int8()), ["spam"])
    pq.write_table(pa.table({"text": repeated}), path, row_group_size=2**27)
    assert path.stat().st_size < 200_000
    with pytest.raises(UserError, match=r"a\.parquet: .*claims 67,108,865 "):
        documents(path)


def test_links_out_of_a_corpus_are_named(tmp_path: Path, capsys: pytest.CaptureFixture):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (tmp_path / "private").write_text("a private line")
    (corpus / "a.txt").write_text("a line")
    (corpus / "near").symlink_to("a.txt")
    go(corpus, tmp_path / "out")
    assert "through a link" not in capsys.readouterr().err
    (corpus / "far\x1b[31m").symlink_to("../private")
    go(corpus, tmp_path / "out2")
    stderr = capsys.readouterr().err
    assert f"note: 1 file is read through a link out of the input: {corpus}/far\\x1b[31m" in stderr
    assert f"-> {tmp_path}/private" in stderr


def test_links_out_of_a_dataset_folder_are_named(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = tmp_path / "hub"
    folder.mkdir()
    (tmp_path / "private.jsonl").write_text('{"text": "a private line"}\n')
    (folder / "train.jsonl").symlink_to("../private.jsonl")
    config = {"hf_dataset": str(folder), "output": str(tmp_path / "out"), "tokenizer": "char"}
    preprocess(PreprocessConfig.model_validate(config | {"workers": 1}))
    assert f"{folder}/train.jsonl -> {tmp_path}/private.jsonl" in capsys.readouterr().err
    os.mkfifo(folder / "more.jsonl")
    with pytest.raises(UserError, match="is a FIFO"):
        preprocess(PreprocessConfig.model_validate(config | {"overwrite": True}))


def test_a_manifest_has_paths_relative_to_the_working_directory(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    go(text, tmp_path / "out")
    assert json.loads((tmp_path / "out/manifest.json").read_text())["options"]["input"] == [
        "a.jsonl"
    ]
    assert str(tmp_path) not in (tmp_path / "out/manifest.json").read_text()


def limited(*flags: object, cwd: Path, kilobytes: int) -> subprocess.CompletedProcess[str]:
    """The command with a limit on the size of files, as on a full disk."""
    limit = f'umask 027; ulimit -f {kilobytes}; exec "$@"'
    command = [str(BIN / "llm-preprocess"), *map(str, flags)]
    return subprocess.run(
        ["bash", "-c", limit, "bash", *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_full_disk_is_a_message_and_what_was_done_is_continued(text: Path, tmp_path: Path):
    flags = ("--input", text, "--output", "out", "--tokenizer", "char", "--workers", 1)
    flags += ("--shard-size", 2_000_000, "--save-tokenizer", "copy")
    for kilobytes in (0, 1, 4, 20):
        done = limited(*flags, cwd=tmp_path, kilobytes=kilobytes)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith("llm-preprocess: ")
    done = limited(*flags, cwd=tmp_path, kilobytes=2**20)
    assert done.returncode == 0, done.stderr
    for folder in (tmp_path / "out", tmp_path / "copy"):
        for path in [folder, *folder.rglob("*")]:
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o750 if path.is_dir() else 0o640), path


def changed(path: Path) -> None:
    """Another byte somewhere in the middle; as many as before."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_shards_that_changed_since_the_stop_are_not_continued(
    text: Path, tmp_path: Path, stop: Callable
):
    whole = tmp_path / "whole"
    go(text, whole)
    stage = stop(tmp_path / "out")
    changed(min((stage / "new/train").glob("*.parquet")))
    with pytest.raises(Damaged, match="SHA-256"):
        go(text, tmp_path / "out")
    go(text, tmp_path / "out", overwrite=True)
    assert tree(tmp_path / "out/train") == tree(whole / "train")


def test_a_journal_with_a_line_twice_is_damaged(tmp_path: Path, text: Path, stop: Callable):
    journal = stop(tmp_path / "out") / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines):
        journal.write_bytes(b"".join([*lines[: number + 1], line, *lines[number + 1 :]]))
        with pytest.raises(Damaged):
            Journal(journal)


@pytest.mark.parametrize("victim", ["train/shard_00000.parquet", "tokenizer/char_tokenizer.json"])
def test_what_changed_since_a_publication_was_stopped_is_not_published(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
):
    def die(*_: object, **__: object) -> None:
        raise Killed

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("light_llm.preprocess.publication.complete_moves", die)
        with pytest.raises(Killed):
            go(text, out)
    path = out / ".preprocess/new" / victim
    before = path.read_bytes()
    changed(path)
    with pytest.raises(UserError, match="is damaged"):
        go(text, out)
    path.write_bytes(before)
    moves = json.loads((out / ".preprocess/moves.json").read_text())
    (out / ".preprocess/moves.json").write_text(json.dumps(moves | {"in": moves["in"][:-1]}))
    with pytest.raises(UserError, match=r"moves\.json: is damaged"):
        go(text, out)
    (out / ".preprocess/moves.json").write_text(json.dumps(moves))
    go(text, out)
    assert (out / victim).read_bytes() == before


@pytest.mark.parametrize(
    "change", [{"workers": 10**9}, {"vocab_size": 2**31}, {"shard_size": 2**64}]
)
def test_no_number_of_a_config_makes_masses(tmp_path: Path, change: dict[str, int]):
    fixed = {"input": "a", "output": "b"}
    with pytest.raises(ValueError, match=r"must (be|fit)"):
        PreprocessConfig.model_validate(fixed | change)
