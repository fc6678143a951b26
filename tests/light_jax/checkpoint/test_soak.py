"""benchmarks/soak.py: what it plans, what it finds, and a short one."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import ROOT, train_command, write_config

sys.path.insert(0, str(ROOT / "benchmarks"))
import soak
import soak_run


def test_a_start_is_interrupted_only_where_one_follows():
    planned = soak.plan(100, 2000, seed=3)
    assert planned == soak.plan(100, 2000, seed=3)
    assert [due.step for due in planned] == sorted(due.step for due in planned)
    for before, due in itertools.pairwise(planned):
        assert due.place != "start" or before.signal != "SIGSTOP"
    assert {due.place for due in planned} == {*soak.PLACES}
    assert {due.signal for due in planned} == {*soak.SIGNALS}


def test_growth_is_told_per_1000_steps():
    samples = [(step, soak.Resources(100 + step // 10, 20, 30)) for step in range(0, 2000, 10)]
    assert soak.growth(samples) == pytest.approx(100)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory) -> list[Path]:
    """Folders of the same run, twice."""
    folders = [tmp_path_factory.mktemp(name) for name in ("whole", "other")]
    for folder in folders:
        train_command(write_config(folder / "c.yaml", num_steps=4))
    return [folder / "out" for folder in folders]


def test_every_difference_is_found(two_runs):
    whole, other = two_runs
    assert soak.differences(whole, other) == []
    (other / ".left.writing").mkdir()
    lines = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    lines[1]["train/loss"] += 1e-7
    (other / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    weights = bytearray((other / "final.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "final.safetensors").write_bytes(weights)
    assert soak.differences(whole, other) == [
        ".left.writing is in one only",
        f"metrics.jsonl: 1 lines differ, {len(lines)} and {len(lines)} in all",
        "final: weights differ",
    ]
    assert "final.safetensors" in "".join(soak_run.whole_tags(other))


@pytest.mark.slow
def test_six_interruptions_of_120_steps():
    script = [sys.executable, ROOT / "benchmarks/soak.py"]
    done = subprocess.run(
        [*script, "--steps", "120", "--interruptions", "6"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "6 interruptions, the same bits\n"
