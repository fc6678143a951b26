"""`profile_steps`: the trace has those steps, whatever ends the run, and no others."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

import pytest
from tiny_runs import start_processes, write_config

from light_jax.config import load_config
from light_jax.reporting.console import Reporter
from light_jax.training import loop
from light_jax.training.compiled import compile_steps
from light_jax.training.run import fill, prepare
from light_jax.training.signals import Stopper
from light_llm.errors import UserError


def traced(folder: Path) -> list[list[int]]:
    """The steps in each trace below a folder, the oldest trace first."""
    found = []
    for path in sorted(
        folder.rglob("perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime
    ):
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        steps = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
        assert any("Execute" in event.get("name", "") for event in events), "no program ran"
        found.append(sorted(map(int, steps)))
    return found


def start(config: Path, resume: str | None = None, *, stop_after: int = 0) -> int:
    """A run that is asked to stop while it makes that step."""
    run = prepare(load_config(config), resume)
    steps = compile_steps(run)
    fill(run)
    with Reporter() as reporter, Stopper() as stopper:

        def step(leaves, tokens, rate):
            if int(leaves[0]) + 1 == stop_after:
                stopper.ask()
            return steps.train(leaves, tokens, rate)

        changed = dataclasses.replace(steps, train=step)
        return loop.train(run, changed, config, reporter, stopper)


def test_the_steps_are_traced_and_what_a_stopped_run_left_by_its_resume(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    changes = {"val_data": None, "profile_steps": [2, 4]}
    config = write_config(tmp_path / "c.yaml", num_steps=5, **changes)
    assert start(config, stop_after=2) == 128 + 15
    assert traced(tmp_path) == [[2]]
    assert "profile     steps 2 to 2: open out/profile/" in capsys.readouterr().err
    assert start(config, "auto") == 0
    assert traced(tmp_path) == [[2], [3, 4]]
    assert "steps 3 to 4: open" in capsys.readouterr().err
    longer = write_config(tmp_path / "c.yaml", num_steps=6, **changes)
    assert start(longer, "auto") == 0
    assert traced(tmp_path) == [[2], [3, 4]]
    assert "none: step 5 is done, and profile_steps ends at 4" in capsys.readouterr().err


def test_a_trace_that_cannot_be_written_costs_no_step(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path / "c.yaml", num_steps=2, val_data=None, profile_steps=[1, 1])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/profile").write_text("a file")
    assert start(config) == 0
    assert "warning: out/profile: no profile (" in capsys.readouterr().err


def test_each_process_writes_its_own(tmp_path):
    changes = {"mesh": {"data": 2}, "val_data": None, "num_steps": 2, "profile_steps": [2, 2]}
    processes = start_processes(write_config(tmp_path / "c.yaml", **changes))
    stderr = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], stderr
    for number in range(2):
        assert traced(tmp_path / f"out/profile/process{number}") == [[2]]


@pytest.mark.parametrize(
    "value, told",
    [
        ([3], "profile_steps=.*must be two steps, the first and the last, such as"),
        ([0, 1], "profile_steps\\[0\\]=0 must be greater than or equal to 1"),
        ([3, 2], r"profile_steps=\[3, 2\]: the first step comes after the last; write \[2, 3\]"),
        ([5, 7], r"profile_steps=\[5, 7\] ends after num_steps=6; name steps from 1 to 6"),
    ],
)
def test_steps_that_are_none_are_refused(tmp_path, value, told):
    with pytest.raises(UserError, match=told):
        load_config(write_config(tmp_path / "c.yaml", num_steps=6, profile_steps=value))
