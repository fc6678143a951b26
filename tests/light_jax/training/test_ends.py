"""The ways a run ends before num_steps: max_time and early_stopping_patience; and what it says."""

import json
import re
import shlex
import time

import pytest
from tiny_runs import column, command, metrics, start_processes, write_config

from light_jax.training.loop import run_config
from light_llm.checkpoint.layout import tags

LONG = {"num_steps": 1_000_000, "log_every": 1000, "eval_every": 1000, "save_every": 1_000_000}


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_max_time_ends_a_run_as_a_signal_does(tmp_path, capsys):
    config = write_config(tmp_path / "c d.yaml", **LONG, max_time="8s")
    start = time.monotonic()
    assert run_config(config) == 143
    assert 8 <= time.monotonic() - start < 30
    (tag,) = [tag for tag in tags(tmp_path / "out") if tag.startswith("step")]
    said = capsys.readouterr().err
    assert re.search(r"^stopped by max_time \(0:00:08\); continue with --resume auto", said, re.M)
    assert f"continue    llm-train {shlex.quote(str(config))} --resume auto\n" in said
    assert f"trained     {int(tag.removeprefix('step')):,} step" in said


def test_max_time_over_before_the_first_step_still_makes_one(tmp_path):
    config = write_config(tmp_path / "c.yaml", **LONG, max_time="0.001")
    assert run_config(config) == 143
    assert list(tags(tmp_path / "out")) == ["step0000001"]


def test_the_page_says_stopped_while_the_last_evaluation_is_owed(tmp_path, capsys):
    config = write_config(tmp_path / "c.yaml", num_steps=1, max_time="0.001")
    page = tmp_path / "out/report.html"
    assert run_config(config) == 143
    assert "stopped by max_time" in capsys.readouterr().err
    assert '<span class="state stopped">' in page.read_text()
    write_config(config, num_steps=1)
    assert run_config(config, "auto") == 0
    assert "done        the model is" in capsys.readouterr().err
    assert '<span class="state finished">' in page.read_text()


def test_max_time_on_two_processes_is_one_decision(tmp_path):
    config = write_config(tmp_path / "c.yaml", **LONG | {"num_steps": 500_000}, max_time="15s")
    runs = start_processes(config)
    said = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [143, 143], said
    assert len([tag for tag in tags(tmp_path / "out") if tag.startswith("step")]) == 1


STOPS = {
    "num_steps": 200,
    "eval_every": 2,
    "optimizer": {"lr": 3.0, "grad_clip": 0},  # gets worse at once
    "scheduler": {"type": "constant", "warmup_steps": 0},
}


def test_patience_ends_a_run_as_finished(tmp_path, capsys):
    config = write_config(tmp_path / "c.yaml", **STOPS, early_stopping_patience=3)
    assert run_config(config) == 0
    losses = column(tmp_path / "out", "val/loss")
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 3
    assert {"best", "final"} <= set(tags(tmp_path / "out"))
    said = capsys.readouterr().err
    assert (
        "done        the model is out/final.safetensors: no better val loss than that of step "
        in said
    )
    assert f"best        val loss {min(losses):.4f} at step {2 * best + 2}\n" in said

    assert run_config(config, "auto") == 0
    assert "nothing to do: no better val loss" in capsys.readouterr().err

    end = metrics(tmp_path / "out", timeless=True)
    step = 2 * best + 4
    write_config(
        config, **STOPS | {"save_every": step}, early_stopping_patience=3, checkpoint_dir="b"
    )
    assert run_config(config) == 0
    tag = f"b/step{step:07d}"
    assert json.loads((tmp_path / f"{tag}.config.json").read_text())["early_stopping_patience"] == 3
    assert run_config(config, tag) == 0
    assert metrics(tmp_path / "b", timeless=True) == end


def test_patience_needs_evaluations(tmp_path):
    config = write_config(tmp_path / "c.yaml", early_stopping_patience=3, val_data=...)
    done = command("llm-train", config, cwd=tmp_path)
    assert done.returncode == 2
    assert "early_stopping_patience=3 needs val_data" in done.stderr


def test_the_commands_at_the_end_work(tmp_path, capsys):
    """As they are printed, in a folder with a space."""
    from light_llm.tokenizer import train_char

    train_char(["abcdefghijklmnopqrstuvwxyz O."]).save(tmp_path / "tokenizer")
    config = write_config(tmp_path / "c.yaml", tokenizer_path="tokenizer", checkpoint_dir="a run")
    assert run_config(config) == 0
    said = dict(re.findall(r"^(write|evaluate|export) +(.*)$", capsys.readouterr().err, re.M))
    assert set(said) == {"write", "evaluate", "export"}
    for name, line in said.items():
        done = command(*shlex.split(line), cwd=tmp_path)
        assert done.returncode == 0, (name, done.stderr)
