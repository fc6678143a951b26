"""llm-convert state: a run moves between PyTorch and JAX without losing any of its optimizer."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file
from tiny_runs import (
    REFERENCE,
    assert_same_weights,
    column,
    command,
    keep_the_first_windows,
    train_command,
    write_config,
)

from light_jax.checkpoint.store import find
from light_jax.config import TrainingConfig, load_config
from light_jax.sections import OptimizerConfig
from light_jax.torch_runs.bridge import export_tag, import_tag
from light_jax.training.loop import run_config
from light_llm.checkpoint import load_transformer
from light_llm.checkpoint.reading import read_checkpoint
from light_llm.errors import UserError
from light_llm.models.transformer.config import TransformerConfig

torch = pytest.importorskip("torch")
from torch_trainer import TorchRun, bits, foreign_tag  # noqa: E402

ROOT = Path(__file__).parents[3]
TAGS = {"adamw-cosine": "step0000020", "adam-biases-epochs": "step0000290"}


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A reference run's checkpoint, as the PyTorch trainer left it, in the folder of a run."""

    def make(case: str) -> Path:
        source, folder = REFERENCE / "training" / case, tmp_path / case
        (folder / "run").mkdir(parents=True)
        (folder / "train").symlink_to(source / "train")
        shutil.copytree(source / "val", folder / "val")
        for path in source.glob(f"{TAGS[case]}.*"):
            shutil.copy(path, folder / "run")
        config = (source / "config.yaml").read_text() + "checkpoint_dir: run\n"
        (folder / "config.yaml").write_text(config)
        keep_the_first_windows(folder)
        monkeypatch.chdir(folder)
        return folder

    return make


def torch_load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


# The reference runs


@pytest.mark.parametrize("case, resume", [("adamw-cosine", "run"), ("adam-biases-epochs", "auto")])
def test_a_pytorch_run_continues_in_jax(case, resume, foreign):
    """Once by the commands, from a prefix into another folder; once in the folder that it is in."""
    folder, tag = foreign(case), TAGS[case]
    step = int(tag.removeprefix("step"))
    if resume == "auto":
        import_tag(f"run/{tag}")
        assert run_config("config.yaml", "auto") == 0
        out = folder / "run"
    else:
        done = command("llm-convert", "state", "from-torch", f"run/{tag}", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"run/{tag}: step {step} of a PyTorch run can be resumed now\n"
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace("checkpoint_dir: run", "checkpoint_dir: out"))
        train_command(config, "--resume", f"run/{tag}")
        out = folder / "out"

    source = REFERENCE / "training" / case
    expected = json.loads((source / "expected.json").read_text())
    rest = expected["steps"][step:]
    assert column(out, "train/lr") == [line["lr"] for line in rest]
    assert column(out, "train/loss") == pytest.approx([line["loss"] for line in rest], abs=2e-5)
    norms = [line["grad_norm"] for line in rest]
    assert column(out, "train/grad_norm") == pytest.approx(norms, rel=1e-4)
    val_losses = [line["val_loss"] for line in expected["val"] if line["step"] > step]
    assert column(out, "val/loss") == pytest.approx(val_losses, abs=2e-5)
    assert_same_weights(out / "final.safetensors", source / "final.safetensors", 1e-5)


@pytest.mark.parametrize("case", TAGS)
def test_there_and_back_every_bit_is_the_same(case, foreign):
    foreign(case)
    prefix = Path("run") / TAGS[case]
    before = torch_load(f"{prefix}.state.pt")
    weights = load_file(f"{prefix}.safetensors")
    config = json.loads(Path(f"{prefix}.config.json").read_text())
    import_tag(prefix)
    assert bits(torch_load(f"{prefix}.state.pt")) == bits(before)  # not ours to write
    os.remove(f"{prefix}.state.pt")
    export_tag(f"{prefix}.state.pt")  # any of the endings will do
    after = torch_load(f"{prefix}.state.pt")
    assert list(after) == list(before)
    assert bits(after) == bits(before)
    stored = load_file(f"{prefix}.safetensors")
    assert stored.pop("lm_head.weight").tobytes() == weights["tok_emb.weight"].tobytes()
    assert {key: value.tobytes() for key, value in stored.items()} == {
        key: value.tobytes() for key, value in weights.items()
    }
    completed = json.loads(Path(f"{prefix}.config.json").read_text())
    model = TransformerConfig.model_validate(config.pop("model"))
    optimizer = OptimizerConfig.model_validate(config.pop("optimizer"))
    assert {key: completed[key] for key in config} == config
    assert completed["model"] == model.model_dump(mode="json")
    assert completed["optimizer"] == optimizer.model_dump(mode="json")
    assert completed.keys() == {*TrainingConfig.model_fields, "checkpoint"}
    load_transformer(prefix)


# From JAX to PyTorch

CONTINUED = {
    "adamw-tied": {},
    "adam-untied-biases-layernorm-learned": {
        "optimizer": {"type": "adam"},
        "model": {
            "num_layers": 1,
            "tie_embeddings": False,
            "attention": {"bias": True, "variant": "mha"},
            "positional": {"encoding": "learned"},
            "norm": {"type": "layernorm"},
        },
    },
    "sgd-complex-parallel-sandwich-accumulation": {
        "optimizer": {"type": "sgd", "lr": 0.05},
        "gradient_accumulation_steps": 2,
        "model": {
            "num_layers": 1,
            "parallel_layers": True,
            "attention": {"variant": "complex"},
            "norm": {"placement": "sandwich"},
        },
    },
    "muon-untied": {"optimizer": {"type": "muon"}, "model": {"tie_embeddings": False}},
}


@pytest.mark.parametrize("changes", CONTINUED.values(), ids=CONTINUED)
def test_a_jax_run_continues_in_pytorch(changes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path / "c.yaml", **changes)
    assert run_config(config) == 0
    prefix = Path("out/step0000003")
    (line,) = export_tag(prefix)
    assert line == "out/step0000003.state.pt: the optimizer state after step 3, for PyTorch"
    exported = torch_load(f"{prefix}.state.pt")
    assert exported["best_val_loss"] == column(tmp_path / "out", "val/loss")[0]

    torch_run = TorchRun(load_config(config), load_transformer(prefix))
    torch_run.load(exported)
    losses = torch_run.train_to(6)
    assert losses == pytest.approx(column(tmp_path / "out", "train/loss")[3:], abs=2e-5)
    trained, final = torch_run.model.state_dict(), load_file("out/final.safetensors")
    for key, value in trained.items():
        bound = 1e-3 if "muon" in str(changes) else 2e-5  # its iteration is in 16 bits
        np.testing.assert_allclose(value.numpy(), final[key], rtol=0, atol=bound, err_msg=key)


def test_a_run_goes_to_pytorch_and_comes_back(tmp_path, monkeypatch):
    """Into its own folder, where it is the same run still."""
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path / "c.yaml", num_steps=3)
    assert run_config(config) == 0
    run = read_checkpoint("out/final").record.run
    export_tag("out/final")
    torch_run = TorchRun(load_config(config), load_transformer("out/final"))
    torch_run.load(torch_load(tmp_path / "out/final.state.pt"))
    torch_run.train_to(5)
    torch_run.save(tmp_path / "out", "step0000005")
    import_tag("out/step0000005")
    assert read_checkpoint("out/step0000005").record.run == run
    write_config(config, num_steps=6)
    assert run_config("c.yaml", "auto") == 0
    assert len(column(tmp_path / "out", "train/loss")) == 3 + 1


# Tags as a PyTorch trainer leaves them


KINDS = {
    "adamw-float16": {"dtype": "float16"},
    "adam-bf16-weights-untied": {
        "optimizer": {"type": "adam"},
        "dtype": "bfloat16",
        "bf16_model_weights": True,
        "model": {"tie_embeddings": False},
    },
    "sgd-without-momentum": {"optimizer": {"type": "sgd", "beta1": 0.0}},
    "muon": {"optimizer": {"type": "muon"}},
    "adamw-not-begun": {"updates": 0, "tag": "step0000000"},
}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_what_a_pytorch_trainer_saves_comes_back_whole(changes, tmp_path):
    scaler = {}
    if changes.get("dtype") == "float16":  # as after an overflow, and two good steps since
        scaler = {**torch.amp.GradScaler("cpu").state_dict(), "scale": 2.0**15}
        scaler["_growth_tracker"] = 2
    prefix = foreign_tag(tmp_path, **changes, state={"best_val_loss": 1.25, "scaler": scaler})
    before = torch_load(f"{prefix}.state.pt")
    import_tag(prefix)
    os.remove(f"{prefix}.state.pt")
    export_tag(prefix)
    after = torch_load(f"{prefix}.state.pt")
    assert bits(after) == bits(before)
    if scaler:
        torch.amp.GradScaler("cpu").load_state_dict(after["scaler"])
        stored = ocp.load((tmp_path / f"{prefix.name}.state").absolute())
        assert stored["loss_scale/scale"] == 2.0**15
        assert stored["loss_scale/finite_steps"] == 2


def test_tags_of_one_folder_are_one_run_and_another_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for tag, updates in [("step0000002", 2), ("step0000001", 1), ("best", 1)]:
        foreign_tag(tmp_path / "out", tag, updates)
        import_tag(f"out/{tag}")
    records = [
        read_checkpoint(f"out/{tag}").record for tag in ("step0000001", "step0000002", "best")
    ]
    assert len({record.run for record in records}) == 1
    foreign_tag(tmp_path / "out", "step0000003", 3, seed=1)
    with pytest.raises(UserError, match=r"another run wrote step0000002.*\n  seed: 42 -> 1"):
        import_tag("out/step0000003")
    for path in (tmp_path / "out").glob("step0000003.*"):
        path.unlink()
    newest = find("auto", tmp_path / "out")
    assert newest is not None
    assert newest.prefix.name == "step0000002"


def test_the_recipe_of_the_docs_loads_an_export(tmp_path):
    prefix = foreign_tag(tmp_path)
    import_tag(prefix)
    export_tag(prefix)
    (recipe,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/convert.md").read_text(), re.S)
    assert recipe.count("checkpoints/my-run/step0005000") == 2
    names: dict[str, Any] = {}
    exec(recipe.replace("checkpoints/my-run/step0005000", str(prefix)), names)
    loaded = names["optimizer"].state_dict()
    assert bits(loaded) == bits(torch_load(f"{prefix}.state.pt")["optimizer"])
    embedding = names["optimizer"].state[names["model"].tok_emb.weight]
    assert embedding["exp_avg"].shape == (131, 32)


def test_a_learning_rate_from_another_schedule_is_reported(tmp_path):
    prefix = foreign_tag(tmp_path)
    config = Path(f"{prefix}.config.json")
    config.write_text(config.read_text().replace('"warmup_steps": 2', '"warmup_steps": 4'))
    _, note = import_tag(prefix)
    assert note == (
        "note: the next update had the learning rate 0.003 in PyTorch; by the schedule of the "
        "config it has 0.0015"
    )
