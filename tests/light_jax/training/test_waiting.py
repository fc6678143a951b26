"""Nobody waits for nothing: what is imported before an answer, and what a loop waits for."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tiny_runs import BIN, ROOT, write_config

from light_jax.config import load_config
from light_jax.reporting.console import Reporter
from light_jax.training import loop
from light_jax.training.compiled import compile_steps
from light_jax.training.run import fill, prepare
from light_jax.training.signals import Stopper

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = tuple(PROJECT["scripts"])
# What only some runs and commands ask for; nothing else waits for their imports.
OPTIONAL = {"torch", "transformers", "wandb", "datasets", "pandas", "matplotlib", "gguf", "onnx"}
OPTIONAL |= {"tensorboardX", "trackio", "lm_eval"}
HEAVY = OPTIONAL | {"jax", "jaxlib", "flax", "optax", "orbax", "tokenizers"}


def imported(name: str, *args: object, cwd: Path) -> tuple[int, set[str], str]:
    """(exit code, packages that were imported, what else was said) of a command."""
    command = [sys.executable, "-X", "importtime", BIN / name, *map(str, args)]
    done = subprocess.run(command, cwd=cwd, env=os.environ, capture_output=True, text=True)
    told = re.compile(r"import time: .* \| +([\w.]+)\n?")
    packages = {module.partition(".")[0] for module in told.findall(done.stderr)}
    assert "typer" in packages
    return done.returncode, packages, told.sub("", done.stderr) + done.stdout


@pytest.mark.parametrize(
    "changes", [{"batchsize": 8}, {"batch_size": 0}, {"seq_len": 64}], ids=["key", "value", "rule"]
)
def test_a_mistake_in_a_config_is_told_before_a_framework_is_imported(tmp_path, changes):
    config = write_config(tmp_path / "c.yaml", **changes)
    for more in ([], ["--resume", "auto"], ["--replay", "folder"], ["--check"]):
        code, packages, said = imported("llm-train", config, *more, cwd=tmp_path)
        assert code == 2
        assert next(iter(changes)) in said
        assert not packages & {*HEAVY, "numpy", "pyarrow"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_no_framework(name, tmp_path):
    code, packages, _ = imported(name, "--help", cwd=tmp_path)
    assert code == 0
    assert not packages & {*HEAVY, "numpy", "pyarrow"}


@pytest.mark.parametrize("package", ["light_llm", "light_jax", "conversion"])
def test_a_package_imports_no_framework(package):
    command = [sys.executable, "-c", f"import sys, {package}; print(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert package in done.stdout.split()
    assert not set(done.stdout.split()) & {*HEAVY, "numpy", "pyarrow"}


def test_a_run_imports_nothing_that_it_was_not_asked_for(tmp_path):
    """It reads shards, evaluates and saves."""
    config = write_config(tmp_path / "c.yaml", num_steps=2, eval_every=1)
    code, packages, _ = imported("llm-train", config, cwd=tmp_path)
    assert code == 0
    assert packages >= {"jax", "pyarrow", "orbax"}
    assert not packages & OPTIONAL


class Told(Reporter):
    """Notes the steps whose numbers are printed."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    def line(self, text: str) -> None:
        if found := re.match(r"step (\d+)/", text):
            self.events.append(f"read {found[1]}")


def test_the_next_step_begins_before_the_metrics_of_the_last_are_read(tmp_path, monkeypatch):
    """Otherwise the device would stand still while the host works. A save reads all there are."""
    monkeypatch.chdir(tmp_path)
    path = write_config(tmp_path / "c.yaml", num_steps=4, save_every=3, val_data=None)
    run = prepare(load_config(path), None)
    steps, events = compile_steps(run), []
    fill(run)

    def step(leaves, tokens, rate):
        events.append("begin")
        return steps.train(leaves, tokens, rate)

    with Told(events) as reporter, Stopper() as stopper:
        loop.train(run, dataclasses.replace(steps, train=step), path, reporter, stopper)
    ahead = ["begin", "begin", "read 1", "begin", "read 2", "read 3", "begin", "read 4"]
    assert events == ahead
