"""How close JAX and PyTorch are, per architecture and per way of training: docs/parity.md's tables.

    python benchmarks/parity.py [STEPS]

Compares every stage of the twelve reference architectures (tests/reference/model) in float32 and
bfloat16, trains each of them for STEPS steps (default 20) in lockstep on the reference shards, then
the default architecture with every optimizer, schedule and precision; last, the stages of the 12
layers of configs/medium.yaml. Minutes on a CPU.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from safetensors.numpy import load_file

from conversion import from_torch, load_torch, to_torch
from light_jax.cli.parity import versions
from light_jax.config import TrainingConfig, load_config
from light_jax.parity import activations
from light_jax.parity.lockstep import Tolerance, lockstep
from light_jax.training.step import init_params
from light_llm.models.transformer import Transformer, TransformerConfig

REFERENCE = Path(__file__).parents[1] / "tests/reference"
SHARDS = REFERENCE / "training/adamw-cosine/train"

BASE: dict[str, Any] = {
    "train_data": str(SHARDS),
    "seq_len": 32,
    "batch_size": 4,
    "num_workers": 0,
    "dtype": "float32",
    "optimizer": {"lr": 3e-3},
    "scheduler": {"warmup_steps": 4},
}
SIZES = {"vocab_size": 131, "max_seq_len": 64, "d_model": 48, "attention": {"num_heads": 4}}

WAYS: dict[str, dict[str, Any]] = {
    "adamw, cosine, float32": {},
    "adam, linear, float32": {"optimizer": {"type": "adam"}, "scheduler": {"type": "linear"}},
    "sgd, constant, float32": {
        "optimizer": {"type": "sgd", "lr": 0.05},
        "scheduler": {"type": "constant"},
    },
    "adamw, wsd, float32": {"scheduler": {"type": "wsd"}},
    "4 micro-batches, float32": {"gradient_accumulation_steps": 4, "batch_size": 1},
    "adamw, bfloat16": {"dtype": "bfloat16"},
    "adamw, bf16_model_weights": {"dtype": "bfloat16", "bf16_model_weights": True},
    "adam, bfloat16": {"dtype": "bfloat16", "optimizer": {"type": "adam"}},
    "sgd, bfloat16": {"dtype": "bfloat16", "optimizer": {"type": "sgd", "lr": 0.05}},
    "adamw, float16": {"dtype": "float16"},
    "sgd, float16": {"dtype": "float16", "optimizer": {"type": "sgd", "lr": 0.05}},
}


def train(steps: int, model: dict[str, Any], way: dict[str, Any]) -> str:
    """Cells of a table: the largest difference over all steps of each quantity."""
    sections = {key: BASE[key] | way.get(key, {}) for key in ("optimizer", "scheduler")}
    cfg = TrainingConfig(**BASE | way | sections | {"model": model, "num_steps": max(steps, 5)})
    rows = list(lockstep(cfg, steps))
    assert rows[-1].finite
    return " | ".join(
        f"{max(getattr(row, name) for row in rows):.1e}" for name in Tolerance._fields
    )


def architecture(folder: Path) -> str:
    """Cells of a table: stages in float32 and bfloat16, logits in float32."""
    model = load_torch(folder / "weights.safetensors", config_of(folder))
    params = from_torch(load_file(folder / "weights.safetensors"), model.cfg)
    tokens_BT = load_file(folder / "expected.safetensors")["tokens"][:, :-1]
    cells = []
    for dtype in ("float32", "bfloat16"):
        stages = activations.compare(params, model, tokens_BT, dtype)
        cells += [f"{max(stage.relative for stage in stages):.1e}", f"{stages[-1].max_abs:.1e}"]
    return " | ".join(cells)


def medium() -> str:
    """The stages of the medium model with its initial weights, on 256 random tokens."""
    cfg = load_config("configs/medium.yaml")
    params = jax.jit(lambda: init_params(cfg))()
    model = Transformer(cfg.model)
    weights = to_torch(params, cfg.model)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    tokens_BT = np.random.default_rng(0).integers(
        cfg.model.vocab_size, size=(1, 256), dtype="int32"
    )
    stages = activations.compare(params, model, tokens_BT)
    return f"{len(stages)} stages, largest {max(stage.relative for stage in stages):.1e}"


def config_of(folder: Path) -> TransformerConfig:
    return TransformerConfig.model_validate_json((folder / "config.json").read_text())


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    warnings.simplefilter("ignore")  # of keys that a case sets to show that they have no effect
    torch.set_num_threads(1)  # threads only slow models as small as these
    jax.config.update("jax_platforms", "cpu")
    print(f"{versions()}; `python benchmarks/parity.py {steps}`\n")
    header = "loss | gradient norm | weights |"
    print(
        "| architecture | stages, float32 | logits | stages, bfloat16 | logits | "
        f"{header}\n|{'---|' * 8}"
    )
    for folder in sorted((REFERENCE / "model").iterdir()):
        model = json.loads((folder / "config.json").read_text())
        model |= {key: SIZES[key] for key in ("vocab_size", "max_seq_len")}
        print(f"| {folder.name} | {architecture(folder)} | {train(steps, model, {})} |", flush=True)
    print(f"\n| training | {header}\n|{'---|' * 4}")
    for name, way in WAYS.items():
        print(f"| {name} | {train(steps, SIZES, way)} |", flush=True)
    print(f"\nconfigs/medium.yaml, float32: {medium()}")


if __name__ == "__main__":
    main()
