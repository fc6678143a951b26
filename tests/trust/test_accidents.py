"""Accidents of a run lose no training: full disks, logs that end, memory, a bad shard."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from in_process import call
from tiny_runs import column, start_processes, write_config
from watched_runs import both, started, until

from light_jax.cli import train as llm_train
from light_jax.config import load_config
from light_jax.reporting.metrics import MetricsFile
from light_jax.reporting.summary import describe
from light_jax.training import loop
from light_jax.training.loop import run_config
from light_jax.training.run import prepare
from light_llm.checkpoint import layout
from light_llm.cli import run as llm_run
from light_llm.errors import UserError
from light_llm.tokenizer import train_char

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
    assert "process 0 (" in stderrs[1]
    assert "stopped: " in stderrs[1]
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


def test_a_failing_tracker_is_left_out_and_the_run_goes_on(tmp_path, monkeypatch, capfd):
    """W&B's own process is gone, as where the system took it for its memory."""
    logged = []

    def log(values):
        if values["step"] == 3:
            raise ConnectionError("the service\nhas ended")
        logged.append(values["step"])

    session = SimpleNamespace(
        id="1", define_metric=lambda *a, **k: None, log=log, finish=int, summary={}, dir="w/r/files"
    )
    fake = SimpleNamespace(
        setup=lambda: SimpleNamespace(settings=SimpleNamespace(mode="offline")),
        init=lambda **settings: session,
        Settings=dict,
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    out = tmp_path / "out"
    config = write_config(tmp_path / "c.yaml", checkpoint_dir=str(out), use_wandb=True)
    assert run_config(config) == 0
    assert logged == [1, 2]
    assert column(out, "step") == [1, 2, 3, 3, 4, 5, 6, 6]
    (warning,) = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert "Weights & Biases failed (ConnectionError: the service has ended)" in warning
    assert warning.endswith("is left out from here on; metrics.jsonl has every line")


def test_the_reader_of_the_log_ends(tmp_path):
    config = write_config(tmp_path / "c.yaml", num_steps=50, save_every=50, val_data=...)
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
    """A batch of 12 GiB of activations in an address space of 8."""
    config = write_config(tmp_path / "c.yaml", batch_size=80_000, val_data=...)
    with started(config, under=f"ulimit -v {8 * 2**20}") as run:
        stderr = run.communicate(timeout=120)[1]
    assert run.returncode == 2, stderr
    assert "llm-train: training: out of memory (" in stderr
    assert "; the compiled step takes " in stderr
    assert "use `batch_size: 40000, gradient_accumulation_steps: 2`" in stderr
    assert "Traceback" not in stderr


def test_a_bug_in_the_midst_of_a_run_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path / "c.yaml", save_every=2)
    real = loop.learning_rate

    def wrong(cfg, step):
        return 1 / 0 if step == 4 else real(cfg, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", wrong)
        ended = call(llm_train.main, config)
    assert ended.exit_code == 1
    *_, message = ended.stderr.splitlines()
    assert "Traceback" not in ended.stderr
    assert message.startswith("llm-train: this is a bug: ZeroDivisionError: division by zero; ")
    (kept,) = Path("out").glob("bug-*.txt")
    assert f"report it with the file {kept}: " in message
    assert f"jax {jax.__version__}\n" in kept.read_text()
    assert kept.read_text().endswith("ZeroDivisionError: division by zero\n")
    assert call(llm_train.main, config, "--resume", "auto").exit_code == 0
    assert column(Path("out"), "step") == [1, 2, 3, 3, 4, 5, 6, 6]


# Positions that were never trained


def test_learned_positions_that_no_window_reaches_are_a_warning(tmp_path, monkeypatch, recwarn):
    monkeypatch.chdir(tmp_path)
    learned = {"positional": {"encoding": "learned"}, "max_seq_len": 24}
    prepare(load_config(write_config(tmp_path / "c.yaml", model=learned, val_data=...)), None)
    (text,) = [str(warning.message) for warning in recwarn if "seq_len" in str(warning.message)]
    assert text.startswith("seq_len=16 trains only positions 0 to 15; the other 8 learned ones")


def test_other_positions_are_a_line_of_the_summary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    summary = describe(prepare(load_config(write_config(tmp_path / "c.yaml")), None))
    assert "positions   16 are trained (seq_len), of 32 (max_seq_len)" in summary
    config = write_config(tmp_path / "c.yaml", model={"max_seq_len": 16})
    assert "positions" not in "\n".join(describe(prepare(load_config(config), None)))


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
