"""Accidents of a run lose no training: signals in every phase, full disks, logs that end."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from in_process import call
from tiny_runs import (
    BIN,
    assert_same_weights,
    column,
    metrics,
    start_processes,
    write_config,
)

from light_jax.reporting.metrics import MetricsFile
from light_jax.training import loop
from light_jax.training.loop import run_config
from light_llm.checkpoint import layout
from light_llm.cli import run as llm_run
from light_llm.errors import UserError
from light_llm.tokenizer import train_char

TERM, INT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
PROMPTLY = 10  # seconds: a tiny save on a busy machine; a wait would take longer


@contextmanager
def started(config: Path, *args: str, under: str = ":") -> Iterator[subprocess.Popen[str]]:
    """`llm-train CONFIG ARGS` in the config's folder; killed if the test ends before it does.

    Args:
        under: a line of bash that limits it.
    """
    run = subprocess.Popen(
        ["bash", "-c", f'{under}; exec "$0" "$@"', BIN / "llm-train", config, *args],
        cwd=config.parent,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield run
    finally:
        run.kill()
        run.wait()


@contextmanager
def both(runs: list[subprocess.Popen[str]]) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of one run, killed in the same way."""
    try:
        yield runs
    finally:
        for run in runs:
            run.kill()
            run.wait()


def until(run: subprocess.Popen[str], begin: str) -> list[str]:
    """Its lines on stderr, up to the first that begins like this."""
    lines = []
    for line in run.stderr:  # type: ignore[union-attr]
        lines.append(line)
        if line.startswith(begin):
            return lines
    raise AssertionError("".join(lines))


def ended_promptly(run: subprocess.Popen[str]) -> int:
    start = time.monotonic()
    run.communicate(timeout=120)
    assert time.monotonic() - start < PROMPTLY
    return run.returncode


# Signals


@pytest.mark.parametrize("number", [TERM, HUP])
def test_a_signal_while_it_compiles_ends_it_at_once(tmp_path, monkeypatch, number):
    """Nothing was trained yet, so nothing is written."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    config = write_config(tmp_path / "c.yaml", model={"num_layers": 24})  # compiles for seconds
    with started(config) as run:
        until(run, "checkpoints")
        run.send_signal(number)
        assert ended_promptly(run) == 128 + number
    assert not (tmp_path / "out").exists()


def test_ctrl_c_before_the_first_step_is_raised_to_a_caller(tmp_path, monkeypatch):
    """From Python it is KeyboardInterrupt, as usual, so a notebook continues."""
    config = write_config(tmp_path / "c.yaml", checkpoint_dir=str(tmp_path / "out"))
    monkeypatch.setattr(loop, "compile_steps", lambda run: os.kill(os.getpid(), INT))
    with pytest.raises(KeyboardInterrupt):
        run_config(config)
    assert not (tmp_path / "out").exists()


def test_a_signal_to_both_processes_while_they_compile(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    config = write_config(
        tmp_path / "c.yaml", mesh={"data": 1, "fsdp": 2}, model={"num_layers": 24}
    )
    with both(start_processes(config)) as runs:
        until(runs[0], "checkpoints")
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
    real, calls = loop.validation_batches, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) in (at // 3, at // 3 + 1):
            os.kill(os.getpid(), TERM)
        return real(*args)

    monkeypatch.setattr(loop, "validation_batches", interrupted)
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


# Disks and logs


FULL = 2**20
"""Bytes of a file: a limit instead of a full disk; a checkpoint fits in it, a log does not."""


def nearly_full(folder: Path, **changes: object) -> Path:
    """The config of a run after its second step, whose metrics.jsonl has room for a few lines."""
    out = folder / "out"
    changes = {"checkpoint_dir": str(out), "num_steps": 2, "val_data": ..., **changes}
    config = write_config(folder / "c.yaml", **changes)
    assert run_config(config) == 0
    line = json.dumps({"step": 1, "padding": "x" * (FULL - 600)}) + "\n"
    (out / "metrics.jsonl").write_text(line)
    return write_config(config, **changes | {"num_steps": 10**6, "save_every": 10**6})


def test_a_disk_that_is_full_at_a_line_of_the_metrics_costs_no_step(tmp_path):
    config, out = nearly_full(tmp_path), tmp_path / "out"
    with started(config, "--resume", "auto", under=f"ulimit -f {FULL // 1024}") as run:
        stderr = run.communicate(timeout=120)[1]
    assert run.returncode == 2, stderr
    path = out / "metrics.jsonl"
    assert f"llm-train: {path}: cannot be written (File too large); free some space" in stderr
    assert "Traceback" not in stderr
    lines = path.read_text()
    assert lines.endswith("}\n")  # no line is cut short
    last = json.loads(lines.splitlines()[-1])["step"]
    (saved,) = set(layout.tags(out)) - {"final", "step0000002"}
    assert int(saved.removeprefix("step")) > last > 2


def test_a_log_that_fails_on_one_host_ends_all_after_the_same_step(tmp_path):
    config, out = nearly_full(tmp_path), tmp_path / "out"
    config.write_text(config.read_text() + "mesh: {data: 1, fsdp: 2}\n")
    with both(start_processes(config, "--resume", "auto")) as runs:
        until(runs[0], "checkpoints")
        resource.prlimit(runs[0].pid, resource.RLIMIT_FSIZE, (FULL, FULL))
        stderrs = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [2, 2], stderrs
    assert "metrics.jsonl: cannot be written (File too large)" in stderrs[0]
    assert "process 0 stopped; its message says why" in stderrs[1]
    assert len(set(layout.tags(out)) - {"final", "step0000002"}) == 1


def test_if_the_checkpoint_does_not_fit_either_both_are_reported(tmp_path, monkeypatch):
    config = write_config(tmp_path / "c.yaml", checkpoint_dir=str(tmp_path / "out"), save_every=2)

    def full(file, values):
        if values["step"] > 2:
            raise UserError("metrics.jsonl: cannot be written")
        written(file, values)

    def fails(saver, tags, *args):
        if tags != ["step0000002"]:
            raise UserError(f"{tags[0]}: cannot be saved")
        saved(saver, tags, *args)

    written, saved = MetricsFile.write, loop.Saver.save
    monkeypatch.setattr(MetricsFile, "write", full)
    monkeypatch.setattr(loop.Saver, "save", fails)
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be written\n.*cannot be saved"):
        run_config(config)
    assert layout.tags(tmp_path / "out") == ["step0000002"]


@pytest.mark.parametrize("fails_at", ["train/loss", "val/loss"])
def test_what_was_trained_is_kept_when_weights_and_biases_fails(tmp_path, monkeypatch, fails_at):
    """All lines are in metrics.jsonl, and a failed line of validation is sent to W&B again."""
    logged = []

    def log(values):
        if fails_at in values and values["step"] == 3 and logged[-1:] != ["failed"]:
            logged.append("failed")
            raise ConnectionError("the service\nhas ended")
        logged.append(values["step"])

    session = SimpleNamespace(id="1", define_metric=lambda *a, **k: None, log=log, finish=int)
    fake = SimpleNamespace(
        setup=lambda: SimpleNamespace(settings=SimpleNamespace(mode="offline")),
        init=lambda **settings: session,
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    out = tmp_path / "out"
    config = write_config(
        tmp_path / "c.yaml", checkpoint_dir=str(out), use_wandb=True, save_every=99
    )
    message = r"Weights & Biases failed \(ConnectionError: the service has ended\)"
    with pytest.raises(UserError, match=message):
        run_config(config)
    assert layout.tags(out) == ["best", "step0000003"]
    assert run_config(config, "auto") == 0
    assert column(out, "step") == [1, 2, 3, 3, 4, 5, 6, 6]


def test_the_reader_of_the_log_ends(tmp_path):
    config = write_config(tmp_path / "c.yaml", num_steps=50, val_data=...)
    with started(config) as run:
        until(run, "step 1/")
        run.stderr.close()
        assert run.wait(120) == 0
    assert column(tmp_path / "out", "step") == [*range(1, 51)]
    assert "final" in layout.tags(tmp_path / "out")


def test_the_last_step_is_logged_whatever_log_every_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        run_config(write_config(tmp_path / "c.yaml", num_steps=3, log_every=2, val_data=...)) == 0
    )
    assert column(Path("out"), "step") == [2, 3]


# Memory


def test_out_of_memory_in_the_step_is_a_message(tmp_path):
    """A batch of 15 GiB of activations in an address space of 8."""
    config = write_config(tmp_path / "c.yaml", batch_size=100_000, val_data=...)
    with started(config, under=f"ulimit -v {8 * 2**20}") as run:
        stderr = run.communicate(timeout=120)[1]
    assert run.returncode == 2, stderr
    assert "llm-train: training: out of memory (" in stderr
    assert "Traceback" not in stderr


# Positions that were never trained


def test_learned_positions_that_no_window_reaches_are_a_warning(tmp_path, monkeypatch, recwarn):
    monkeypatch.chdir(tmp_path)
    learned = {"positional": {"encoding": "learned"}, "max_seq_len": 24}
    run_config(write_config(tmp_path / "c.yaml", num_steps=1, model=learned, val_data=...))
    (text,) = [str(warning.message) for warning in recwarn if "seq_len" in str(warning.message)]
    assert text.startswith("seq_len=16 trains only positions 0 to 15; the other 8 learned ones")


def test_other_positions_are_a_line_of_the_summary(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_config(write_config(tmp_path / "c.yaml", num_steps=1, val_data=...))
    line = "positions   16 are trained (seq_len), of 32 (max_seq_len)\n"
    assert line in capsys.readouterr().err
    changes = {"model": {"max_seq_len": 16}, "checkpoint_dir": "other", "val_data": ...}
    run_config(write_config(tmp_path / "c.yaml", num_steps=1, **changes))
    assert "positions" not in capsys.readouterr().err


def test_llm_run_says_once_that_it_passes_the_windows_of_the_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_char(["the cat"]).save(tmp_path / "tokenizer")
    changes = {"num_steps": 1, "val_data": ..., "tokenizer_path": "tokenizer"}
    run_config(write_config(tmp_path / "c.yaml", **changes))
    flags = ("--checkpoint", "out/final", "--interactive", "--max-tokens", 1)
    message = "the model was trained on windows of seq_len=16 tokens"
    short, long = "the\n", f"{'the ' * 5}\n"
    assert message not in call(llm_run.main, *flags, input=short).stderr
    assert call(llm_run.main, *flags, input=short + long * 2).stderr.count(message) == 1


def test_a_training_shard_that_turns_bad_costs_no_step(tmp_path, monkeypatch):
    """What was trained before it is committed, and the run goes on once the shard is mended."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "c.yaml", num_steps=6, save_every=100, val_data=...)
    real, calls = loop.BatchLoader.__next__, []

    def bad_at_the_fourth(loader):
        calls.append(loader)
        if len(calls) == 4:
            raise UserError("a.parquet: row group 0 is corrupt")
        return real(loader)

    with monkeypatch.context() as patch:
        patch.setattr(loop.BatchLoader, "__next__", bad_at_the_fourth)
        with pytest.raises(UserError, match="row group 0 is corrupt"):
            run_config("c.yaml")
    assert layout.tags(Path("out")) == ["step0000003"]
    assert run_config("c.yaml", "auto") == 0
