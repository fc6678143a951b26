"""llm-parity CONFIG --steps N: llm-train's step beside plain PyTorch, which follows recordings."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_runs import merged, write_config

from light_jax.config import load_config
from light_jax.data.loader import BatchLoader
from light_jax.data.stream import TokenStream
from light_llm.errors import UserError

torch = pytest.importorskip("torch")

from light_jax.parity.lockstep import TOLERANCE, comparable, lockstep, tolerance_of  # noqa: E402
from light_jax.parity.reference import ReferenceTrainer, rate_factor  # noqa: E402
from light_jax.parity.report import row_line, row_verdict  # noqa: E402

torch.set_num_threads(1)  # threads only slow models as small as these

CASES = ["adamw-cosine", "sgd-constant", "adamw-bf16", "adam-biases-epochs"]


@pytest.mark.parametrize("case", CASES)
def test_the_pytorch_loop_reproduces_the_recorded_run(case, reference_run, monkeypatch):
    folder = reference_run(case)
    monkeypatch.chdir(folder)
    cfg, recorded = load_config("config.yaml"), json.loads((folder / "expected.json").read_text())
    trainer = ReferenceTrainer(cfg, load_file("init.safetensors"))
    stream = TokenStream(cfg.train_data, seq_len=cfg.seq_len, seed=cfg.seed)
    batches = BatchLoader(stream, batch_size=cfg.batch_size, last_step=cfg.num_steps, num_workers=0)
    low_precision = case == "adamw-bf16"
    for n, (tokens, expected) in enumerate(zip(batches, recorded["steps"], strict=True)):
        assert cfg.optimizer.lr * rate_factor(cfg, n) == pytest.approx(expected["lr"], rel=1e-12)
        update = trainer.step(tokens)
        assert update.loss == pytest.approx(expected["loss"], abs=1.5e-3 if low_precision else 2e-6)
        assert update.grad_norm == pytest.approx(
            expected["grad_norm"], rel=3e-3 if low_precision else 2e-6
        )
    final, weights = load_file("final.safetensors"), trainer.weights()
    atol = {"adamw-bf16": 5e-3, "adam-biases-epochs": 3e-5}.get(case, 1e-6)
    for key, value in weights.items():
        np.testing.assert_allclose(value, final[key], rtol=0, atol=atol, err_msg=key)


def test_both_train_a_reference_run_alike(reference_run, monkeypatch):
    folder = reference_run("adamw-cosine")
    monkeypatch.chdir(folder)
    recorded = json.loads((folder / "expected.json").read_text())["steps"]
    rows = list(lockstep(load_config("config.yaml"), 40))
    assert [row.step for row in rows] == list(range(1, 41))
    assert row_verdict(rows, TOLERANCE["float32"]).startswith("the same: 40 steps within ")
    assert rows[0].weights == 0  # warmup: the rate of the first step is 0
    for row, expected in zip(rows, recorded, strict=True):
        assert row.jax.loss == pytest.approx(expected["loss"], rel=1e-6)
        assert row.torch.loss == pytest.approx(expected["loss"], rel=1e-6)
        assert row.grad_norm < 1e-5  # a tenth of what the command allows, as the next
        assert row.weights < 1e-4
    assert not (folder / "out").exists()  # nothing is written


def test_both_follow_the_shuffled_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = load_config(write_config(tmp_path / "c.yaml", window_order="shuffled", num_workers=2))
    plain = cfg.model_copy(update={"window_order": "sequential"})
    stream = TokenStream(cfg.train_data, seq_len=16, seed=42, window_order="shuffled")
    seen, real = [], ReferenceTrainer.step

    def noted(trainer, tokens_ABS):
        seen.append(tokens_ABS)
        return real(trainer, tokens_ABS)

    monkeypatch.setattr(ReferenceTrainer, "step", noted)
    rows, others = list(lockstep(cfg, 4)), list(lockstep(plain, 4))
    assert row_verdict(rows, TOLERANCE["float32"]).startswith("the same: 4 steps within ")
    assert (np.concatenate(seen[:4]) == stream.windows(np.arange(32)).reshape(4, 8, 17)).all()
    assert rows[0].jax.loss != others[0].jax.loss


SANDWICH: dict[str, Any] = {
    "attention": {"variant": "mqa"},
    "positional": {"encoding": "alibi"},
    "norm": {"placement": "sandwich"},
    "ffn": {"variant": "geglu"},
    "tie_embeddings": False,
    "logit_softcap": 0.5,
}
PARALLEL: dict[str, Any] = {
    "attention": {"variant": "mha", "mask_type": "sliding_window", "window_size": 5, "bias": True},
    "positional": {"encoding": "learned"},
    "norm": {"type": "layernorm", "placement": "sandwich"},  # its post norms stay unused
    "ffn": {"variant": "mlp", "activation": "gelu"},
    "parallel_layers": True,
    "gradient_checkpointing": True,
}
WAYS: dict[str, dict[str, Any]] = {
    "complex, documents, sgd, bfloat16 weights, 2 micro-batches": {
        "model": {"attention": {"variant": "complex", "document_mask": True, "document_end": 14}},
        "optimizer": {"type": "sgd", "lr": 0.05},
        "gradient_accumulation_steps": 2,
        "z_loss": 1e-3,
        "dtype": "bfloat16",
        "bf16_model_weights": True,
    },
    # one short sequence: the first loss scale is too large, and both must skip the same steps
    "sandwich, adam, float16, overflowing": {
        "model": SANDWICH,
        "optimizer": {"type": "adam", "lr": 3e-4},
        "dtype": "float16",
        "batch_size": 1,
        "seq_len": 2,
    },
    "parallel, adamw, wsd, no clipping": {
        "model": PARALLEL,
        "optimizer": {"grad_clip": 0.0},
        "scheduler": {"type": "wsd"},
        "z_loss": 1e-2,
    },
}


@pytest.mark.parametrize(("dtype", "loss"), [("bfloat16", 2e-3), ("float32", 2e-5)])
def test_muon_is_torchs(dtype, loss, tmp_path):
    """Its iteration in either precision, on biases, an untied head and learned positions too."""
    muon = {"type": "muon", "lr": 3e-3, "muon_dtype": dtype}
    changes = {"num_steps": 20, "optimizer": muon, "model": PARALLEL | {"tie_embeddings": False}}
    cfg = load_config(write_config(tmp_path / "c.yaml", **changes))
    rows = list(lockstep(cfg, 20))
    assert row_verdict(rows, tolerance_of(cfg)).startswith("the same: 20 steps within ")
    assert max(row.loss for row in rows) < loss


@pytest.mark.parametrize("way", WAYS)
def test_both_train_alike_in_every_variant(way, tmp_path):
    small = {"num_steps": 7, "model": {"num_layers": 1}}
    cfg = load_config(write_config(tmp_path / "c.yaml", **merged(WAYS[way], small)))
    rows = list(lockstep(cfg, 7))
    assert row_verdict(rows, TOLERANCE[cfg.dtype]).startswith("the same: 7 steps within ")
    assert [row.jax.z_loss is not None for row in rows] == [cfg.z_loss is not None] * 7
    for row in rows if cfg.z_loss else []:
        assert row.jax.z_loss == pytest.approx(row.torch.z_loss, rel=TOLERANCE[cfg.dtype].loss)
        assert 0.05 < row.jax.z_loss / (cfg.z_loss * np.log(131) ** 2) < 2
    skipped = [row.step for row in rows if row.jax.grad_norm is None]
    assert skipped == [row.step for row in rows if row.torch.grad_norm is None]
    assert bool(skipped) == ("overflowing" in way)


def test_training_that_differs_is_found_and_named(tmp_path):
    """PyTorch with weight decay where JAX has none: the same losses at first, other weights."""
    cfg = load_config(write_config(tmp_path / "c.yaml", optimizer={"weight_decay": 0.0}))
    other = load_config(write_config(tmp_path / "d.yaml", optimizer={"weight_decay": 1.0}))
    rows = list(lockstep(cfg, 3, reference_cfg=other))
    tolerance = TOLERANCE["float32"]
    assert [bool(row.beyond(tolerance)) for row in rows] == [False, True, True]
    assert rows[1].beyond(tolerance) == ["weights"]
    assert row_verdict(rows, tolerance).startswith(
        "not the same: step 2 is the first to diverge, in weights "
    )
    assert row_line(rows[1], tolerance).endswith("beyond the tolerance: weights")


def test_dropout_is_turned_off_and_said(tmp_path):
    changes = {"model": {"dropout": 0.1, "ffn": {"dropout": 0.2}}}
    cfg, notes = comparable(load_config(write_config(tmp_path / "c.yaml", **changes)))
    assert (cfg.model.dropout, cfg.model.attention.dropout, cfg.model.ffn.dropout) == (0, 0, 0)
    assert [note.partition(" ")[0] for note in notes] == [
        "model.dropout=0.1",
        "model.ffn.dropout=0.2",
    ]
    assert comparable(cfg) == (cfg, [])


@pytest.mark.parametrize("steps", [0, 7])
def test_steps_that_the_schedule_does_not_have(steps, tmp_path):
    cfg = load_config(write_config(tmp_path / "c.yaml"))
    with pytest.raises(UserError, match=f"--steps={steps} must be from 1 to .* num_steps=6"):
        next(lockstep(cfg, steps))
