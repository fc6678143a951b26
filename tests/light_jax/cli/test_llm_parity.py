"""llm-parity as a person uses it: what it prints, draws and refuses, and its exit codes."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
from in_process import call
from safetensors.numpy import load_file, save_file
from tiny_runs import REFERENCE, command, write_config

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from light_jax.cli.parity import main


@pytest.fixture
def folder(reference_run, monkeypatch):
    """A run of the PyTorch trainer, its checkpoint of step 20 included, as working directory."""
    path = reference_run("adamw-cosine")
    monkeypatch.chdir(path)
    return path


def parity(*args):
    return call(main, *args)


def test_a_checkpoint(folder):
    done = command("llm-parity", "step0000020", cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "tokens      val_data 'val', 2 sequences of 32" in lines
    assert "weights     the same bits in both" in lines
    table = [line.split()[0] for line in lines[lines.index("") + 2 :] if line.startswith("layers")]
    assert table == [f"layers.{i}{part}" for i in (0, 1) for part in (".attn", ".ffn", "")]
    assert lines[-1].startswith(
        "the same: all 28 stages agree within a relative difference of 0.0001 "
    )


def test_training(folder):
    config = write_config(folder / "tiny.yaml", model={"dropout": 0.1})
    done = command("llm-parity", config, "--steps", 3, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "note        model.dropout=0.1 is off (0.0) in both" in done.stdout
    table = done.stdout.partition("tensor\n")[2]
    assert [line.split()[0] for line in table.splitlines()[:3]] == ["1", "2", "3"]
    assert "the same: 3 steps within the relative tolerances loss 1e-05" in done.stdout
    assert (folder / "parity.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert not (folder / "out").exists()


def test_what_differs_exits_with_1(folder):
    """No two float32 implementations agree within nothing."""
    done = parity("step0000020", "--random", "--length", 7, "--sequences", 3, "--tolerance", 0)
    assert done.exit_code == 1, done.output
    assert "tokens      random (--random), 3 sequences of 7" in done.stdout
    assert "not the same: the first to diverge is layers.0." in done.stdout
    assert parity("step0000020", "--dtype", "bfloat16").exit_code == 0


def test_training_that_is_not_finite_exits_with_3(folder):
    weights = load_file("init.safetensors")
    weights["final_norm.weight"][0] = np.nan
    save_file(weights, "init.safetensors")
    done = parity("config.yaml", "--steps", 5, "--no-png")
    assert done.exit_code == 3, done.output
    assert done.stdout.endswith("step 1 is not finite in both: the comparison ends here\n")


def test_a_snapshot_of_the_model_alone_compares_on_random_tokens(folder):
    case = REFERENCE / "model/complex-rope"
    shutil.copy(case / "weights.safetensors", "only.safetensors")
    model = json.loads((case / "config.json").read_text())
    (folder / "only.config.json").write_text(json.dumps({"model": model}))
    done = parity("only")
    assert done.exit_code == 0, done.output
    assert "tokens      random (the config names no val_data), 2 sequences of " in done.stdout


BAD: dict[str, tuple[list[str], str]] = {
    "no checkpoint": (["best"], "best: there is no checkpoint 'best' (. has step0000020)"),
    "weights without config": (["init"], "init.config.json: the weights have no config beside"),
    "weights of another model": (["other"], "the weights do not fit the model of the config"),
    "a config without --steps": (["config.yaml"], "config.yaml is a config file; add --steps N"),
    "no config": (["no.yaml", "--steps", "2"], "no.yaml: there is no such config file"),
    "a prefix with --steps": (["step0000020", "--steps", "2"], "must end in .yaml, .yml or .json"),
    "too many steps": (["config.yaml", "--steps", "41"], "from 1 to the config's num_steps=40"),
    "too long": (["step0000020", "--seq-len", "65"], "from 1 to model.max_seq_len=64"),
    "no sequences": (["step0000020", "--sequences", "0"], "--sequences=0 must be 1 or more"),
    "no such dtype": (["step0000020", "--dtype", "int8"], "--dtype='int8' must be float32,"),
    "a negative tolerance": (["step0000020", "--tolerance", "-1"], "--tolerance=-1.0 must be 0"),
    "a picture of a checkpoint": (["step0000020", "--png", "a.png"], "--png needs a config and"),
    "random training": (["config.yaml", "--steps", "2", "--random"], "--random is for a checkpoi"),
    "two wishes": (["config.yaml", "--steps", "2", "--png", "a", "--no-png"], "exclude each other"),
    "no folder for it": (["config.yaml", "--steps", "2", "--png", "no/a.png"], "cannot be written"),
    "no data": (["moved"], "(val_data of the checkpoint's config; --random compares on random tok"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_exit_code_2(case, folder):
    config = json.loads((folder / "step0000020.config.json").read_text())
    for name, changed in {
        "moved": {"val_data": "nowhere"},
        "other": {"model": config["model"] | {"num_layers": 1}},
    }.items():
        shutil.copy("step0000020.safetensors", f"{name}.safetensors")
        (folder / f"{name}.config.json").write_text(json.dumps(config | changed))
    before = sorted(path.name for path in folder.iterdir())
    args, message = BAD[case]
    if case == "no checkpoint":
        for name in ("moved", "other"):
            (folder / f"{name}.config.json").unlink()
    done = parity(*args)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert done.stderr.startswith("llm-parity: ")
    assert message in done.stderr
    assert {path.name for path in folder.iterdir()} <= {*before}


@pytest.mark.parametrize("package, remedy", [("matplotlib", "plot"), ("torch", "torch")])
def test_a_missing_extra_is_named_with_its_install_line(package, remedy, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    done = parity("config.yaml", "--steps", 2)
    assert done.exit_code == 2, done.output
    assert f"`pip install -e '.[{remedy}]'`" in done.stderr
