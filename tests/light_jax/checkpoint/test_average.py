"""ema_decay: the average of the weights is torch's, part of every tag, and exact over a resume."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import call
from tiny_runs import contents, metrics, write_config

from conversion import to_torch
from light_jax.checkpoint import store
from light_jax.cli.eval import main as llm_eval
from light_jax.config import load_config
from light_jax.data import TokenStream
from light_jax.runs import clean
from light_jax.runs.folder import tags_of
from light_jax.torch_runs.bridge import export_tag, import_tag
from light_jax.training.advice import bytes_of_tag
from light_jax.training.loop import run_config
from light_jax.training.run import fill, prepare
from light_jax.training.step import init_params
from light_llm.checkpoint import digests, layout, load_transformer, reading
from light_llm.checkpoint.tensors import Reader, read_tensors
from light_llm.errors import UserError

torch = pytest.importorskip("torch")
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn  # noqa: E402

from light_jax.parity.reference import ReferenceTrainer  # noqa: E402

DECAY = 0.8
CHANGES: dict[str, Any] = {
    "ema_decay": DECAY,
    "gradient_accumulation_steps": 2,
    "batch_size": 4,
    "save_every": 2,
    "keep_last_n": 1,
    "scheduler": {"type": "constant"},
    "eval_every": 2,
    "eval_steps": 1000,  # all of val_data
    "max_shard_size": "40KB",
}


def run(folder: Path, *args: str, **changes: Any) -> Path:
    """A run in `folder`; its checkpoint_dir."""
    write_config(folder / "c.yaml", **(CHANGES | changes))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_config("c.yaml", *args) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    """Another run with the same config, as far as step 4."""
    return run(tmp_path_factory.mktemp("half"), num_steps=4)


def copy_of(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder / "out")
    return folder / "out"


def tensors(prefix: Path) -> dict[str, np.ndarray]:
    found = read_tensors(layout.locate(prefix).weights)
    with Reader(found, "numpy") as reader:
        return {key: reader.whole(key) for key in found}


def test_the_average_is_torchs_over_the_updates(whole):
    """Two micro-batches a step: an update each is not the same."""
    cfg = load_config(whole / "final.config.json")
    trainer = ReferenceTrainer(cfg, to_torch(init_params(cfg), cfg.model))
    average = AveragedModel(trainer.model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    average.update_parameters(trainer.model)  # its first call copies: the initial weights
    stream = TokenStream(cfg.train_data, seq_len=cfg.seq_len, seed=cfg.seed)
    for step in range(cfg.num_steps):
        trainer.step(stream.windows(8 * step + np.arange(8)).reshape(2, 4, -1))
        average.update_parameters(trainer.model)
    ours, weights = tensors(whole / "final.ema"), tensors(whole / "final")
    for key, value in average.module.state_dict().items():
        np.testing.assert_allclose(ours[key], value.numpy(), rtol=0, atol=2e-6, err_msg=key)
        assert np.abs(ours[key] - weights[key]).max() > 1e-4, key


def test_it_is_evaluated_beside_the_weights(whole):
    lines = [line for line in metrics(whole) if "val/loss" in line]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert all(line["val/loss_ema"] != line["val/loss"] for line in lines)
    for tag, name in (("final.ema", "val/loss_ema"), ("final", "val/loss")):
        data = load_config(whole / "final.config.json").val_data
        done = call(llm_eval, whole / tag, "--data", data, "--json")
        assert done.exit_code == 0, done.output
        result = json.loads(done.stdout)["per_source"][0]
        assert math.isclose(result["loss"], lines[-1][name], rel_tol=1e-6)


def test_a_resumed_run_has_the_average_of_one_that_was_not_stopped(whole, half, tmp_path):
    resumed = run(copy_of(half, tmp_path).parent, "auto")
    for path in whole.glob("final*.safetensors*"):
        assert (resumed / path.name).read_bytes() == path.read_bytes(), path.name
    assert len(list(whole.glob("final.ema-*-of-*.safetensors"))) > 2
    assert metrics(resumed, timeless=True) == metrics(whole, timeless=True)


def test_it_is_part_of_its_tag(whole, tmp_path):
    kept = {tag.name for tag in tags_of(whole)}
    assert kept == {"best", "final", "step0000006"}  # what was deleted left nothing
    assert all(tag.problem is None for tag in tags_of(whole))
    assert clean.plan(whole, keep=None) == []
    said = bytes_of_tag(load_config(whole / "final.config.json"))  # by --check
    assert all(said < tag.size < 1.2 * said for tag in tags_of(whole))
    copy = copy_of(whole, tmp_path)
    part = copy / "final.ema-00002-of-00005.safetensors"
    damaged = bytearray(part.read_bytes())
    damaged[-1] ^= 1
    part.write_bytes(damaged)
    for refused in (lambda: store.find(str(copy / "final"), copy), lambda: _load(copy)):
        with pytest.raises(UserError, match=rf"{part.name}: its bytes are not those written"):
            refused()
    load_transformer(copy / "final")  # the weights are whole
    (copy / "final.ema.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"final\.ema\.safetensors: is missing"):
        store.find(str(copy / "final"), copy)
    (problem,) = [tag.problem for tag in tags_of(copy) if tag.name == "final"]
    assert problem is not None
    assert problem.startswith("damaged: no final.ema")


def _load(folder: Path) -> None:
    load_transformer(folder / "final.ema.safetensors")


def test_turned_off_it_goes_and_turned_on_it_starts_from_the_weights(half, tmp_path, monkeypatch):
    copy = copy_of(half, tmp_path)
    off = run(copy.parent, "auto", ema_decay=None, num_steps=6)
    assert list(off.glob("*.ema*")) == list(off.glob("best.ema*"))
    assert not any("val/loss_ema" in line for line in metrics(off) if line["step"] > 4)
    monkeypatch.chdir(copy.parent)
    write_config(copy.parent / "on.yaml", **(CHANGES | {"num_steps": 8}))
    again = prepare(load_config("on.yaml"), "out/final")
    assert "the average of ema_decay starts from the weights of step 6" in again.changes
    fill(again)
    weights, average = (
        to_torch(w, again.cfg.model) for w in (again.state.weights, again.state.average)
    )
    assert all((weights[key] == average[key]).all() for key in weights)


def test_it_waits_beside_a_run_that_pytorch_continues(half, tmp_path, monkeypatch):
    copy = copy_of(half, tmp_path)
    before = tensors(copy / "final.ema")
    lines = export_tag(copy / "final")
    assert "final.ema.safetensors.index.json; a PyTorch run does not go on" in lines[-1]
    assert not any("average" in line for line in import_tag(copy / "final"))
    after = tensors(copy / "final.ema")
    assert all((before[key] == after[key]).all() for key in before)
    digests.verify(reading.read_checkpoint(copy / "final"))
    # PyTorch's own tag has no record, and no average that belongs to it
    config = json.loads((copy / "final.config.json").read_text())
    del config["checkpoint"]
    (copy / "final.config.json").write_text(json.dumps(config))
    assert "a resume starts it from these weights" in import_tag(copy / "final")[-1]
    assert not any("final.ema" in name for name in contents(copy))


def test_what_is_not_recorded_is_not_read(half, tmp_path):
    copy = copy_of(half, tmp_path)
    config = json.loads((copy / "final.config.json").read_text())
    files = config["checkpoint"]["files"]
    config["checkpoint"]["files"] = {k: v for k, v in files.items() if ".ema" not in k}
    (copy / "final.config.json").write_text(json.dumps(reading.seal(config)))
    with pytest.raises(UserError, match="records no average of its weights"):
        _load(copy)
    found = reading.read_checkpoint(copy / "final")
    assert found.files.average is None  # so a resume starts a new one
    assert reading.averaged(found) is None


def test_a_tag_that_is_named_as_the_average_of_another_is_left_alone(tmp_path):
    out = run(tmp_path, ema_decay=None, num_steps=4)

    def copy_best(name: str) -> list[Path]:
        return [
            Path(shutil.copy(path, out / path.name.replace("best", name)))
            for path in out.glob("best.*")
            if path.is_file()
        ]

    own = copy_best("step0000004.ema")
    run(tmp_path, "auto", ema_decay=None, num_steps=6)
    assert "step0000004" not in layout.tags(out)  # deleted, for keep_last_n
    assert all(path.exists() for path in own)
    copy_best("step0000008.ema")
    with pytest.raises(UserError, match=r"step0000008\.ema\.config\.json: is in the way"):
        run(tmp_path, "auto", ema_decay=None, num_steps=8)
