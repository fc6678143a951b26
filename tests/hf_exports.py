"""Checkpoints of random models as the PyTorch trainer writes them, exported to transformers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything of Hugging Face is imported

import in_process
import torch
from safetensors.torch import save_file
from torch_cases import lively, tiny
from transformers import AutoModelForCausalLM

from light_jax.cli.convert import main
from light_llm.hf.check import quietly
from light_llm.models.transformer import Transformer, TransformerConfig

CONTEXT = 64
WINDOW = {"mask_type": "sliding_window", "window_size": 5}
LLAMA3 = {"type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}

# name: the class that transformers has for it, and the model
FAMILIES: dict[str, tuple[str, TransformerConfig]] = {
    name: (class_name, tiny(**({"max_seq_len": CONTEXT} | sections)))
    for name, class_name, sections in [
        ("plain", "LlamaForCausalLM", {}),
        ("untied", "LlamaForCausalLM", {"tie_embeddings": False}),
        (
            "geglu-head6",
            "LlamaForCausalLM",
            {"ffn": {"variant": "geglu"}, "attention": {"head_dim": 6}},
        ),
        ("biases", "LlamaForCausalLM", {"ffn": {"bias": True}, "attention": {"bias": True}}),
        ("linear", "LlamaForCausalLM", {"positional": {"rope_base": 300.0, "rope_scaling": 3.0}}),
        ("llama3", "LlamaForCausalLM", {"positional": {"rope_scaling": LLAMA3}}),
        ("window", "MistralForCausalLM", {"attention": WINDOW}),
        ("qkv-bias", "Qwen2ForCausalLM", {"attention": {"qkv_bias": True, "num_kv_heads": 2}}),
        ("qk-norm", "Qwen3ForCausalLM", {"attention": {"qk_norm": True}, "norm": {"eps": 1e-3}}),
    ]
}
# what no family has
OWN: dict[str, TransformerConfig] = {
    name: tiny(**({"max_seq_len": CONTEXT} | sections))
    for name, sections in {
        "alibi-window": {"positional": {"encoding": "alibi"}, "attention": WINDOW},
        "complex": {"attention": {"variant": "complex"}, "tie_embeddings": False},
        "learned-layernorm": {"positional": {"encoding": "learned"}, "norm": {"type": "layernorm"}},
        "sandwich-mlp": {"norm": {"placement": "sandwich"}, "ffn": {"variant": "mlp"}},
        "sinusoidal-post": {
            "positional": {"encoding": "sinusoidal"},
            "norm": {"placement": "post"},
        },
        "none-parallel": {"positional": {"encoding": "none"}, "parallel_layers": True},
        "pattern": {"attention": {"window_pattern": [5, None]}},
        "capped": {"logit_softcap": 3.0},
    }.items()
}


def write_checkpoint(prefix: Path, model: Transformer, **snapshot: Any) -> Path:
    """DIR/TAG of a model without digests, as the PyTorch trainer leaves it."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: value.clone() for key, value in model.state_dict().items()}, f"{prefix}.safetensors"
    )
    config = {"model": model.cfg.model_dump(mode="json"), **snapshot}
    Path(f"{prefix}.config.json").write_text(json.dumps(config))
    return prefix


def convert(*args: object) -> in_process.Ended:
    return in_process.call(main, "hf", *args)


def exported(folder: Path, cfg: TransformerConfig, *flags: object) -> tuple[Transformer, Any]:
    """Our model, and what transformers loads from its export at folder / "out"."""
    model = lively(cfg)
    done = convert(write_checkpoint(folder / "run/best", model), folder / "out", *flags)
    assert done.exit_code == 0, done.output
    return model, loaded(folder / "out")


def loaded(folder: Path, **options: Any) -> Any:
    with quietly():
        options = {"dtype": torch.float32} | options
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **options)
    return model.eval()
