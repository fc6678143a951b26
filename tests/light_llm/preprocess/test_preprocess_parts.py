"""A run in parts gives one folder, whoever makes which part, in whatever order, however stopped."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pages import fences
from pydantic import ValidationError
from stand_ins import program
from tiny_runs import BIN, ROOT

from light_llm.errors import UserError
from light_llm.files.disk import locked
from light_llm.preprocess import PreprocessConfig, part, preprocess
from light_llm.preprocess.dryrun import estimate
from light_llm.preprocess.journal import Journal
from light_llm.preprocess.making import Made, make_part
from light_llm.preprocess.manifest import read_manifest
from light_llm.preprocess.parts import finish, prepare
from light_llm.preprocess.plan import divide, folder_of, read_plan
from light_llm.preprocess.request import request_of
from light_llm.tokenizer import train_char


@pytest.fixture
def kinds(tmp_path: Path, write_parquet: Callable, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of all kinds, some of a dozen shards of 20,000 tokens, one of white space; seen from
    tmp_path."""
    folder = tmp_path / "in"
    folder.mkdir()
    lines = [json.dumps({"text": f"line {i} {i * i} " * 20}) + "\n" for i in range(400)]
    (folder / "a.jsonl").write_text("".join(lines[:200]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[200:]).encode(), mtime=0))
    write_parquet(folder / "c.parquet", [f"row {i} {i * i * i} " * 30 for i in range(150)])
    (folder / "d.csv").write_text("text\n" + "".join(f"cell {i} {i + 7}\n" for i in range(300)))
    (folder / "e.txt").write_text(" \n" * 5000)
    (folder / "f.txt").write_text("the last text, of some words " * 40)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(part, "SMALL_CHUNKS", 1)
    return folder


def asked(output: str, parts: int = 3, **options: object) -> PreprocessConfig:
    options = {"tokenizer": "char", "shard_size": 20_000, "val_fraction": 0.1} | options
    return PreprocessConfig.model_validate(
        {"input": "in", "output": output, "parts": parts, "workers": 1} | options
    )


def make(output: str, parts: int, number: int, **options: object) -> Made:
    return make_part(request_of(asked(output, parts, **options)), number)


def visible(folder: str) -> list[str]:
    return [path.name for path in Path(folder).iterdir() if path.name[0] != "."]


@pytest.mark.parametrize("parts, order", [(1, [0]), (3, [2, 0, 1]), (6, [5, 3, 1, 0, 2, 4])])
@pytest.mark.parametrize("seed", [None, 7])
def test_the_order_of_the_parts_and_their_processes_change_nothing(
    kinds: Path, files: Callable, parts: int, order: list[int], seed: int | None
):
    whole = preprocess(asked("whole", parts, shuffle_seed=seed))
    plan = prepare(request_of(asked("out", parts, shuffle_seed=seed)))
    assert plan is not None
    assert sum(map(len, plan.parts)) == 6
    for number in order:
        assert not make("out", parts, number, shuffle_seed=seed, workers=1 + number % 2).before
        assert visible("out") == []
    assert make("out", parts, order[0], shuffle_seed=seed).before
    again = finish(request_of(asked("out", parts, shuffle_seed=seed)))
    assert files(Path("out")) == files(Path("whole"))
    assert (again.parts, again.unigram_entropy) == (whole.parts, whole.unigram_entropy)
    assert visible("out")
    assert not Path("out/.preprocess").exists()
    manifest = read_manifest(Path("out/manifest.json"))
    assert manifest is not None
    assert manifest["options"]["parts"] == parts


def test_the_documents_are_those_of_a_run_without_parts(kinds: Path, rows: Callable):
    preprocess(asked("parts"))
    preprocess(asked("whole").model_copy(update={"parts": None}))
    for side in ("train", "val"):
        assert rows(Path("parts") / side) == rows(Path("whole") / side)
    shuffled = preprocess(asked("shuffled", shuffle_seed=1))
    assert shuffled.train.documents == len(rows(Path("whole/train")))
    assert rows(Path("shuffled/train")) != rows(Path("whole/train"))


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40), st.data())
def test_a_part_has_its_share_of_the_bytes_to_within_a_file(sizes: list[int], data: st.DataObject):
    parts = data.draw(st.integers(1, len(sizes)))
    cut = divide(sizes, parts)
    assert [size for each in cut for size in sizes[each]] == sizes
    assert all(sizes[each] for each in cut)
    assert max(sum(sizes[each]) for each in cut) <= sum(sizes) / parts + max(sizes)


LONG = """import os, time
def adapt(row):
    time.sleep(0.01 if os.path.exists("slow") else 0)
    return row["text"] * 100  # a few chunks of documents in a file
"""


def test_a_killed_part_is_continued_and_the_others_do_not_wait(
    kinds: Path, tmp_path: Path, start: Callable, files: Callable
):
    (tmp_path / "long.py").write_text(LONG)
    train_char(["line row 0123456789"]).save(tmp_path / "char")
    options: dict = {"input": "in/*.[jp]*", "adapter_module": "long.py", "shard_size": 400_000}
    options |= {"tokenizer_path": "char"}
    flags = ("--input", "in/*.[jp]*", "--adapter-module", "long.py", "--shard-size", 400_000)
    flags += ("--tokenizer", "char", "--tokenizer-path", "char", "--val-fraction", 0.1)
    flags += ("--workers", 1, "--output", "out")
    preprocess(asked("whole", 2, **options))
    prepare(request_of(asked("out", 2, **options)))
    shards = tmp_path / "out/.preprocess/parts/00000/new"
    (tmp_path / "slow").touch()
    for number in (signal.SIGKILL, signal.SIGTERM):
        with start(*flags, "--parts", 2, "--part", 0) as process:
            _wait_for_shards(shards, 1 + len(list(shards.rglob("shard_?????.parquet"))))
            if number == signal.SIGKILL:
                process.send_signal(signal.SIGSTOP)
                with pytest.raises(UserError, match="part 0 is being made by another llm-prepro"):
                    make("out", 2, 0, **options)
                busy = r"written by another llm-preprocess; wait .*\(now: part 0\)"
                with pytest.raises(UserError, match=busy):
                    finish(request_of(asked("out", 2, **options)))
                with pytest.raises(UserError, match=busy):
                    preprocess(asked("out", 3, overwrite=True))
                (tmp_path / "slow").unlink()
                make("out", 2, 1, **options)
                (tmp_path / "slow").touch()
            process.send_signal(number)
            _, errors = process.communicate(timeout=30)
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
        assert "Traceback" not in errors
        assert (number == signal.SIGTERM) == ("the same command continues" in errors)
    missing = r"1 of 2 parts is not made: 0 \(\d+%\)\. Make it with --part, and repeat --finish"
    with pytest.raises(UserError, match=missing):
        finish(request_of(asked("out", 2, **options)))
    assert visible("out") == []
    (tmp_path / "slow").unlink()
    with start(*flags, "--parts", 2, "--part", 0) as process:
        out, errors = process.communicate(timeout=60)
    assert "continuing part 0 after" in errors
    assert out.startswith("part 0 of 2: ")
    finish(request_of(asked("out", 2, **options)))
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def _wait_for_shards(folder: Path, number: int) -> None:
    deadline = time.monotonic() + 40
    while len(list(folder.rglob("shard_?????.parquet"))) < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Killed(BaseException):
    """Abrupt, like an unhandled signal."""


@contextmanager
def dying_at(point: str) -> Iterator[None]:
    """Die before a rename: the third of a shard, that of moves.json, or the publication of val."""
    renamed: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        rename = Path.rename

        def die(path: Path, target: Path) -> Path:
            renamed.extend([path] if path.name.startswith("shard_") else [])
            names = {"plan": ".plan.json.tmp", "decision": ".moves.json.tmp", "middle": "val"}
            if path.name == names.get(point) or (point == "gathering" and len(renamed) == 3):
                raise Killed
            return rename(path, target)

        patch.setattr(Path, "rename", die)
        with pytest.raises(Killed):
            yield


@pytest.mark.parametrize("point", ["plan", "gathering", "decision", "middle"])
def test_a_step_that_dies_is_completed_by_the_same_command(
    kinds: Path, files: Callable, point: str
):
    whole = preprocess(asked("whole"))
    config = asked("out", save_tokenizer="copy")
    if point == "plan":
        with dying_at(point):
            prepare(request_of(config))
        with pytest.raises(UserError, match="nothing is prepared there"):
            make("out", 3, 0)
    assert prepare(request_of(config)) == prepare(request_of(config))
    for number in (1, 0, 2):
        make("out", 3, number)
    if point != "plan":
        with dying_at(point):
            finish(request_of(config))
        assert point == "middle" or visible("out") == []
    if point == "gathering":
        assert make("out", 3, 0).before  # its shards are on their way
    if point == "middle":
        with pytest.raises(UserError, match="repeat --finish"):
            make("out", 3, 0)
    for _ in range(2):
        again = finish(request_of(config))
        assert again.parts == whole.parts
        assert files(Path("out")) == files(Path("whole"))
        assert files(Path("copy")) == files(Path("whole/tokenizer"))
    with pytest.raises(UserError, match="holds tokenizer, manifest"):
        prepare(request_of(config))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"part": 3}, "part=3 must be 0 to 2 with parts=3"),
        ({"part": -1}, "part=-1 must be 0 to 2 with parts=3"),
        ({"parts": 0}, "must be 1 to 10000"),
        ({"parts": None, "part": 0}, "part=0 has no meaning without parts"),
        ({"parts": None, "cluster": "ray"}, "cluster='ray' has no meaning without parts"),
        ({"part": 0, "finish": True}, "part and finish are set, and each is a command of its own"),
        ({"cluster": "dask"}, "must be ray, or ray://HOST:PORT"),
        ({"cluster": "ray://host"}, "must be ray, or ray://HOST:PORT"),
        ({"input": (), "hf_dataset": "a/b"}, "hf download --repo-type dataset a/b"),
    ],
)
def test_a_request_that_has_no_meaning_is_refused(options: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        asked("out", **options)


def test_more_parts_than_files_are_refused_with_a_remedy(kinds: Path, files: Callable):
    with pytest.raises(UserError, match=r"parts=7 is more than the 6 files .*split -n l/8"):
        prepare(request_of(asked("out", 7)))
    assert not Path("out").exists()


def test_a_step_of_another_request_names_what_differs(kinds: Path):
    with pytest.raises(UserError, match=r"nothing is prepared .* --parts 3 --prepare first"):
        make("out", 3, 0)
    with pytest.raises(UserError, match=r"nothing is prepared"):
        finish(request_of(asked("out")))
    assert not Path("out").exists()
    prepare(request_of(asked("out")))
    make("out", 3, 0)
    with pytest.raises(UserError, match="asked for something else: min_length was 1 and is 5"):
        make("out", 3, 1, min_length=5)
    with pytest.raises(UserError, match="asked for something else: parts was 3 and is 4"):
        make("out", 4, 3)
    with pytest.raises(UserError, match=r"something else: val_fraction was 0\.1 and is 0\.2"):
        finish(request_of(asked("out", val_fraction=0.2)))
    with pytest.raises(UserError, match=r"a run in 3 parts .*\(1 of them made\).* was 3 and is 2"):
        prepare(request_of(asked("out", 2)))
    plain = asked("out").model_copy(update={"parts": None})
    with pytest.raises(UserError, match=r"run in 3 parts that was prepared .* parts was 3 and is"):
        preprocess(plain)
    (kinds / "f.txt").write_text("changed")
    with pytest.raises(UserError, match="something else: the input changed"):
        make("out", 3, 1)
    assert visible("out") == []
    with pytest.raises(UserError, match="leave out --part"):
        estimate(asked("out", part=1))


def test_overwrite_discards_what_was_prepared(
    kinds: Path, files: Callable, capsys: pytest.CaptureFixture
):
    whole = asked("whole", 2)
    preprocess(whole)
    prepare(request_of(asked("out")))
    make("out", 3, 0)
    prepare(request_of(asked("out", 2, overwrite=True)))
    assert "what was prepared for a run in parts is discarded" in capsys.readouterr().err
    preprocess(asked("out", 2))
    assert files(Path("out")) == files(Path("whole"))
    prepare(request_of(asked("other")))
    plain = {"parts": None, "overwrite": True}
    preprocess(asked("other").model_copy(update=plain))
    preprocess(asked("plain").model_copy(update=plain))
    assert files(Path("other")) == files(Path("plain"))


@pytest.mark.parametrize("damage", ["gone", "cut", "journal", "request", "tokenizer", "plan"])
def test_what_the_parts_left_is_not_trusted_blindly(kinds: Path, files: Callable, damage: str):
    preprocess(asked("whole"))
    prepare(request_of(asked("out")))
    for number in range(3):
        make("out", 3, number)
    stage = Path("out/.preprocess")
    folder = folder_of(stage, 1)
    shard = folder / "new/train/shard_00001.parquet"
    journal = folder / "journal.jsonl"
    if damage == "gone":
        shard.unlink()
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "journal":
        journal.write_bytes(journal.read_bytes() + b"[]\n")
    elif damage == "request":
        journal.write_text(journal.read_text().replace('"min_length": 1', '"min_length": 2'))
    elif damage == "tokenizer":
        (stage / "new/tokenizer/char_tokenizer.json").write_text("{}")
    else:
        (stage / "plan.json").write_bytes((stage / "plan.json").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"--overwrite"):
        finish(request_of(asked("out")))
    assert visible("out") == []
    if damage in ("tokenizer", "plan"):
        preprocess(asked("out", overwrite=True))
    else:
        assert not make("out", 3, 1, overwrite=True).before
        assert make("out", 3, 0, overwrite=True).before
        finish(request_of(asked("out")))
    assert files(Path("out")) == files(Path("whole"))


def test_a_link_in_the_place_of_a_part_is_not_followed(kinds: Path, tmp_path: Path):
    prepare(request_of(asked("out")))
    folder = folder_of(Path("out/.preprocess"), 1)
    (tmp_path / "elsewhere").mkdir()
    (folder / "new").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="so llm-preprocess did not put it there"):
        make("out", 3, 1)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_part_whose_lock_is_held_for_a_moment_waits(kinds: Path):
    prepare(request_of(asked("out")))
    lock = folder_of(Path("out/.preprocess"), 0) / "lock"
    with locked(lock, ""), pytest.raises(UserError, match="part 0 is being made by another"):
        make_part(request_of(asked("out")), 0, patience=0.2)
    with locked(Path("out/.preprocess/lock"), ""), pytest.raises(UserError, match="prepared or"):
        make_part(request_of(asked("out")), 0, patience=0.2)
    assert not make("out", 3, 0).before


def test_documents_are_counted_over_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A part may hold none, or nothing but what is not text."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in "abc":
        Path(f"in/{name}.txt").write_text(" \n" * 500)
    with pytest.raises(UserError, match=r"no documents in in: .*, 3 documents are empty"):
        preprocess(asked("none", tokenizer="char"))
    Path("in/a.bin").write_bytes(b"\0" * 900)
    Path("in/c.txt").write_text("text " * 100)
    summary = preprocess(asked("some", 4, val_fraction=0))
    assert summary.train.documents == 1
    Path("in/a.bin").write_bytes(b"\0" * 9000)
    with pytest.raises(UserError, match="most of it is not text: 1 of 4 files"):
        preprocess(asked("most", 4))
    assert preprocess(asked("most", 4, allow_skipped=True, overwrite=True)).train.documents == 1


def test_nothing_held_out_is_noted_and_nothing_left_is_refused(
    kinds: Path, capsys: pytest.CaptureFixture
):
    summary = preprocess(asked("few", val_fraction=1e-9))
    assert summary.val.documents == 0
    assert "so nothing is held out: no val shards" in capsys.readouterr().err
    with pytest.raises(UserError, match="holds out all texts of the parts"):
        preprocess(asked("all", val_fraction=1 - 1e-9))


def test_the_fast_engine_is_taken_in_parts_too(
    tmp_path: Path, saved_bpe: Path, monkeypatch: pytest.MonkeyPatch, files: Callable
):
    """Also where a part is stopped before its first document is encoded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(part, "SMALL_CHUNKS", 2)
    Path("in").mkdir()
    for name in "ab":
        lines = (json.dumps({"text": f"{name} {i}"}) + "\n" for i in range(2500))
        Path(f"in/{name}.jsonl").write_text("".join(lines))
    options = {"tokenizer": None, "tokenizer_path": str(saved_bpe)}
    prepare(request_of(asked("out", 2, **options)))

    def die(*_: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "use", die)
        with pytest.raises(Killed):
            make("out", 2, 0, **options)
    preprocess(asked("out", 2, **options))
    manifest = read_manifest(Path("out/manifest.json"))
    assert manifest is not None
    assert [engine.split()[0] for engine in manifest["engines"]] == ["gigatoken"]


def test_a_prepared_run_says_what_each_part_reads(kinds: Path):
    plan = prepare(request_of(asked("out")))
    assert plan == read_plan(Path("out/.preprocess"))
    assert plan is not None
    sizes = {f"in/{path.name}": os.path.getsize(path) for path in kinds.iterdir()}
    assert dict(file for each in plan.parts for file in each) == sizes
    assert [name for each in plan.parts for name, _ in each] == sorted(sizes)


SBATCH = """#!/bin/bash
# As sbatch --parsable, at once: each task of --array in turn, after the job that it depends on.
for arg in "$@"; do
    case "$arg" in
        --array=*) tasks=$(seq $(echo "${arg#*=}" | tr - ' ')) ;;
        --dependency=afterok:*) test -f "done-${arg##*:}" || exit 1 ;;
    esac
    wrapped=$arg
done
echo $$
for task in ${tasks:-none}; do
    SLURM_ARRAY_TASK_ID=$task sh -c "$wrapped" >> log 2>&1 || exit 1
done
touch "done-$$"
"""


def test_the_lines_for_slurm_make_all_parts(kinds: Path, tmp_path: Path, files: Callable):
    (text,) = (text for _, text in fences(ROOT / "docs/scale.md") if "--array=" in text)
    assert "parts=64" in text
    config = {"input": "in", "output": "out", "tokenizer": "char", "shard_size": 20_000}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/corpus.yaml").write_text(json.dumps(config | {"val_fraction": 0.1}))
    program(tmp_path / "programs", "sbatch", SBATCH)
    path = f"{tmp_path / 'programs'}:{BIN}:{os.environ['PATH']}"
    script = text.replace("parts=64", "parts=3").replace("--workers 8", "--workers 1")
    done = subprocess.run(["bash", "-euc", script], env=os.environ | {"PATH": path})
    assert done.returncode == 0, (tmp_path / "log").read_text()
    preprocess(asked("whole"))
    assert files(Path("out")) == files(Path("whole"))


def test_the_job_for_kubernetes_is_one_part_for_each_index():
    (text,) = (
        text
        for _, text in fences(ROOT / "docs/scale.md")
        if "--parts 64" in text and "kind: Job" in text
    )
    spec = yaml.safe_load(text)["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    (line,) = container["args"]
    assert f"--parts {spec['completions']} " in line
    assert line.endswith('--part "$JOB_COMPLETION_INDEX"')
