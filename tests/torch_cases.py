"""Architectures for the tests of the PyTorch side: the reference cases, and small ones to vary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from light_llm.models.transformer import Transformer, TransformerConfig

torch.set_num_threads(1)  # threads only slow models as small as these

REFERENCE = Path(__file__).parent / "reference/model"
CASES = sorted(path.name for path in REFERENCE.iterdir())


def reference_config(case: str) -> TransformerConfig:
    return TransformerConfig.model_validate(
        json.loads((REFERENCE / case / "config.json").read_text())
    )


def tiny(**sections: Any) -> TransformerConfig:
    """A config of few dimensions; `attention`, `positional`, … are merged into its sections."""
    base: dict[str, Any] = {
        "vocab_size": 31,
        "max_seq_len": 48,
        "d_model": 16,
        "num_layers": 2,
        "attention": {"num_heads": 4},
    }
    for key, value in sections.items():
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    return TransformerConfig.model_validate(base)


def lively(cfg: TransformerConfig, seed: int = 0) -> Transformer:
    """A model in eval mode whose weights are large enough for every path to show in the logits."""
    torch.manual_seed(seed)
    model = Transformer(cfg).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


def tokens_for(cfg: TransformerConfig, batch: int, length: int) -> torch.Tensor:
    """Random ids; of a model with `document_mask`, about one in five ends a document."""
    generator = torch.Generator().manual_seed(1)
    tokens_BT = torch.randint(cfg.vocab_size, (batch, length), generator=generator)
    if cfg.attention.document_mask:
        ends_BT = torch.rand(batch, length, generator=generator) < 0.2
        tokens_BT[ends_BT] = cfg.attention.document_end
    return tokens_BT


DOCUMENTS = {"document_mask": True, "document_end": 0}
WINDOW = {"mask_type": "sliding_window", "window_size": 3}

# Beside the reference cases: each encoding with each mask that can be decoded token by token, in
# the placements that the reference leaves out, and what else touches positions or the cache.
DECODABLE: dict[str, TransformerConfig] = (
    {
        f"{variant}-{encoding}-{mask}-{placement}{'-parallel' * parallel}": tiny(
            attention={"variant": variant, "mask_type": mask, **window},
            positional={"encoding": encoding},
            norm={"placement": placement},
            parallel_layers=parallel,
        )
        for variant, encoding, mask, window, placement, parallel in [
            ("gqa", "learned", "causal", {}, "post", False),
            ("mqa", "sinusoidal", "causal", {}, "sandwich", False),
            ("mha", "none", "causal", {}, "pre", True),
            ("gqa", "alibi", "causal", {}, "post", True),
            ("complex", "alibi", "causal", {}, "pre", False),
            ("complex", "learned", "causal", {}, "pre", False),
            ("gqa", "rope", "sliding_window", {"window_size": 1}, "pre", False),
            ("mqa", "alibi", "sliding_window", {"window_size": 4}, "sandwich", False),
            ("complex", "rope", "sliding_window", {"window_size": 3}, "post", False),
            ("mha", "learned", "sliding_window", {"window_size": 6}, "pre", True),
            ("gqa", "sinusoidal", "sliding_window", {"window_size": 100}, "pre", False),
            ("gqa", "none", "sliding_window", {"window_size": 2}, "pre", False),
        ]
    }
    | {
        f"documents-{encoding}": tiny(
            attention={"variant": variant, **DOCUMENTS, **window}, positional={"encoding": encoding}
        )
        for variant, encoding, window in [
            ("gqa", "rope", {}),
            ("mqa", "learned", WINDOW),
            ("complex", "alibi", {}),
            ("mha", "sinusoidal", {}),
            ("gqa", "none", {"window_pattern": [5, None]}),
        ]
    }
    | {
        case: cfg
        for case in CASES
        if (cfg := reference_config(case)).attention.mask_type != "bidirectional"
    }
)
