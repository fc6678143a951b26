"""Checkpoints that the exports read: a model of random weights, on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from conversion.mapping import table
from light_llm.models.transformer import TransformerConfig

TINY = {
    "vocab_size": 300,
    "max_seq_len": 48,
    "d_model": 32,
    "num_layers": 2,
    "attention": {"num_heads": 4, "num_kv_heads": 2},
}


def config(**sections: Any) -> TransformerConfig:
    """The tiny model with sections changed, key by key."""
    merged: dict[str, Any] = dict(TINY)
    for name, value in sections.items():
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value
    return TransformerConfig.model_validate(merged)


def weights(cfg: TransformerConfig) -> dict[str, np.ndarray]:
    """Random float32 weights by our keys, large enough for each to show in the logits."""
    random = np.random.default_rng(0)
    return {
        entry.key: (("norm" in entry.key) + 0.3 * random.standard_normal(entry.shape)).astype("f4")
        for entry in table(cfg)
    }


def checkpoint(
    folder: Path, cfg: TransformerConfig, tokenizer: Path | None = None, **changed: np.ndarray
) -> Path:
    """Write FOLDER/best.*, with some tensors `changed`; returns the prefix."""
    snapshot = {"model": cfg.model_dump(mode="json")}
    if tokenizer is not None:
        snapshot["tokenizer_path"] = str(tokenizer)
    folder.mkdir(exist_ok=True)
    (folder / "best.config.json").write_text(json.dumps(snapshot))
    save_file(weights(cfg) | changed, folder / "best.safetensors")
    return folder / "best"
