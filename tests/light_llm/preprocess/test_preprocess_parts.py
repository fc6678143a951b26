"""A run in parts gives one folder, whoever makes which part, in whatever order."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from in_parts import Killed, asked, make, visible
from pages import fences
from stand_ins import program
from tiny_runs import BIN, ROOT

from light_llm.errors import UserError
from light_llm.files.disk import locked
from light_llm.preprocess import part, preprocess
from light_llm.preprocess.journal import Journal
from light_llm.preprocess.making import make_part
from light_llm.preprocess.manifest import read_manifest
from light_llm.preprocess.parts import finish, prepare
from light_llm.preprocess.plan import divide, folder_of, read_plan
from light_llm.preprocess.request import request_of


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
