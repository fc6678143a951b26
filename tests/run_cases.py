"""A checkpoint on disk for llm-run: random weights, and a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch_cases import lively, tiny

from light_llm.tokenizer import train_char

TEXT = "the cat sat on the mat and the dog sat on the log, größer 🙂 than before. "


def save_checkpoint(folder: Path, **config: Any) -> Path:
    """Random weights of the `model` section, and a char tokenizer by default."""
    folder.mkdir(exist_ok=True)
    if "tokenizer_path" not in config:
        train_char([TEXT]).save(folder / "tokenizer")
        config["tokenizer_path"] = str(folder / "tokenizer")
    model = lively(tiny(**config["model"]))
    state = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    save_file(state, folder / "best.safetensors")
    config["model"] = model.cfg.model_dump()
    (folder / "best.config.json").write_text(json.dumps(config))
    return folder / "best"
