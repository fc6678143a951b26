"""Signals in every phase of a run lose no training."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_runs import assert_same_weights, metrics, start_processes, write_config
from watched_runs import both, ended_promptly, started, until

from light_jax.training import loop, validation
from light_jax.training.loop import run_config
from light_llm.checkpoint import layout

TERM, INT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP


@pytest.mark.parametrize("number", [TERM, HUP])
def test_a_signal_while_it_compiles_ends_it_at_once(tmp_path, monkeypatch, number):
    """Nothing was trained yet, so nothing is written."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    config = write_config(tmp_path / "c.yaml", model={"num_layers": 24})  # compiles for seconds
    with started(config) as run:
        until(run, "compiling")
        run.send_signal(number)
        assert ended_promptly(run) == 128 + number
    assert not (tmp_path / "out").exists()


def test_ctrl_c_before_the_first_step_is_raised_to_a_caller(tmp_path, monkeypatch):
    """From Python it is KeyboardInterrupt, as usual, so a notebook continues."""
    config = write_config(tmp_path / "c.yaml", checkpoint_dir=str(tmp_path / "out"))
    monkeypatch.setattr(loop, "compile_steps", lambda run: os.kill(os.getpid(), INT))
    before = signal.signal(INT, signal.default_int_handler)  # as a fresh interpreter has it
    try:
        with pytest.raises(KeyboardInterrupt):
            run_config(config)
    finally:
        signal.signal(INT, before)
    assert not (tmp_path / "out").exists()


def test_a_signal_to_both_processes_while_they_compile(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    config = write_config(
        tmp_path / "c.yaml", mesh={"data": 1, "fsdp": 2}, model={"num_layers": 24}
    )
    with both(start_processes(config)) as runs:
        until(runs[0], "compiling")
        for run in runs:
            run.send_signal(TERM)
        assert [ended_promptly(run) for run in runs] == [143, 143]
    assert not (tmp_path / "out").exists()


def long_validation(folder: Path) -> str:
    """Validation data that takes minutes, window by window."""
    folder.mkdir()
    docs = np.random.default_rng(0).integers(0, 131, (20_000, 200), np.int32)
    tokens = pa.array(list(docs), pa.list_(pa.int32()))
    pq.write_table(pa.table({"tokens": tokens}), folder / "v.parquet", row_group_size=1000)
    return str(folder)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_evaluation_is_done_on_resume(tmp_path, processes):
    changes = {"val_data": long_validation(tmp_path / "val"), "eval_every": 2, "save_every": 99}
    config = write_config(
        tmp_path / "c.yaml", mesh={"data": 1, "fsdp": processes}, eval_steps=10**6, **changes
    )
    with both(start_processes(config, count=processes)) as runs:
        until(runs[0], "step 2/")
        time.sleep(0.5)
        runs[-1].send_signal(TERM)  # the other processes learn of it
        assert [ended_promptly(run) for run in runs] == [143] * processes
    out = tmp_path / "out"
    assert layout.tags(out) == ["step0000002"]
    write_config(config, checkpoint_dir=str(out), eval_steps=1, num_steps=3, **changes)
    assert run_config(config, "auto") == 0
    assert [(line["step"], *(set(line) & {"train/loss", "val/loss"})) for line in metrics(out)] == [
        (1, "train/loss"),
        (2, "train/loss"),
        (2, "val/loss"),
        (3, "train/loss"),
        (3, "val/loss"),
    ]


@pytest.mark.parametrize("at", [3, 6])
def test_a_run_with_interrupted_evaluations_has_the_results_of_one_without(
    tmp_path, monkeypatch, at
):
    """At the last step too, and if the resume's first evaluation is also interrupted."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run_config(write_config(tmp_path / "w.yaml", checkpoint_dir=str(whole))) == 0
    config = write_config(tmp_path / "c.yaml", checkpoint_dir=str(out))
    real, calls = validation.validation_batches, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) in (at // 3, at // 3 + 1):
            os.kill(os.getpid(), TERM)
        return real(*args)

    monkeypatch.setattr(validation, "validation_batches", interrupted)
    assert run_config(config) == 143
    assert f"step{at:07d}" in layout.tags(out)
    assert "final" not in layout.tags(out)
    assert [run_config(config, "auto") for _ in range(2)] == [143, 0]
    assert metrics(out, timeless=True) == metrics(whole, timeless=True)
    assert layout.tags(out) == layout.tags(whole)
    for tag in layout.tags(whole):
        assert_same_weights(layout.locate(whole / tag).weights, layout.locate(out / tag).weights)


def test_a_closed_session_is_a_signal_but_not_under_nohup(tmp_path):
    changes = {"num_steps": 10**6, "save_every": 10**6, "val_data": ..., "log_every": 1}
    config = write_config(tmp_path / "c.yaml", **changes)

    with started(config, under="trap '' HUP") as run:
        until(run, "step 1/")
        run.send_signal(HUP)
        until(run, "step 101/")
        run.send_signal(TERM)
        assert ended_promptly(run) == 128 + TERM
    with started(config, "--resume", "auto") as run:
        until(run, "step ")
        run.send_signal(HUP)
        assert ended_promptly(run) == 128 + HUP
    assert len(layout.tags(tmp_path / "out")) == 2


def test_a_signal_while_a_step_is_saved_makes_no_further_step(tmp_path, monkeypatch):
    config = write_config(tmp_path / "c.yaml", checkpoint_dir=str(tmp_path / "out"), val_data=...)
    real = loop.Saver.save

    def interrupted(*args):
        os.kill(os.getpid(), TERM)
        real(*args)

    monkeypatch.setattr(loop.Saver, "save", interrupted)
    assert run_config(config) == 143
    assert layout.tags(tmp_path / "out") == ["step0000003"]
