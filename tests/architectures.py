"""Architectures to test: the reference cases, a pairwise table, and a strategy over all of them."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from hypothesis import strategies as st

from conversion.mapping import table
from light_jax.models.placement import ANYWHERE, Placement
from light_jax.models.transformer import Transformer
from light_llm.models.transformer.config import TransformerConfig

REFERENCE = Path(__file__).parent / "reference/model"
CASES = sorted(path.name for path in REFERENCE.iterdir())

Changes = dict[str, Any]


def reference_config(case: str) -> TransformerConfig:
    return TransformerConfig.model_validate_json((REFERENCE / case / "config.json").read_text())


def tiny(*changes: Changes, **more: Any) -> TransformerConfig:
    """A config of few dimensions; each of `changes` is merged into it, section by section."""
    merged: Changes = {
        "vocab_size": 31,
        "max_seq_len": 16,
        "d_model": 24,
        "num_layers": 2,
        "attention": {"num_heads": 4},
    }
    for change in (*changes, more):
        for key, value in change.items():
            merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return TransformerConfig.model_validate(merged)


def lively_params(cfg: TransformerConfig, seed: int = 0) -> nnx.State:
    """Random parameters, norms and biases too, large enough for each to show in the logits."""
    rng = np.random.default_rng(seed)
    tree: dict[tuple[str | int, ...], Any] = {}
    for entry in table(cfg):
        normal = rng.standard_normal(entry.jax_shape)
        value = 1 + 0.3 * normal if "norm" in entry.key else 0.3 * normal
        tree[entry.path] = nnx.Param(jax.numpy.asarray(value.astype(np.float32)))
    return nnx.from_flat_state(tree.items())


def build(
    cfg: TransformerConfig,
    params: nnx.State,
    dtype: Any = "float32",
    placement: Placement = ANYWHERE,
) -> Transformer:
    """The JAX model with these parameters."""
    abstract = nnx.eval_shape(
        lambda: Transformer(
            cfg, dtype=jax.numpy.dtype(dtype), placement=placement, rngs=nnx.Rngs(0)
        )
    )
    return nnx.merge(nnx.graphdef(abstract), params)


def lively(cfg: TransformerConfig, dtype: Any = "float32", seed: int = 0) -> Transformer:
    return build(cfg, lively_params(cfg, seed), dtype)


def tokens_for(cfg: TransformerConfig, batch: int, length: int, seed: int = 1) -> np.ndarray:
    """Random ids; of a model with `document_mask`, about one in five ends a document."""
    rng = np.random.default_rng(seed)
    tokens_BT = rng.integers(cfg.vocab_size, size=(batch, length), dtype="int32")
    if cfg.attention.document_mask:
        tokens_BT[rng.random(tokens_BT.shape) < 0.2] = cfg.attention.document_end
    return tokens_BT


def _attention(variant: str, heads: int, kv_heads: int | None = None) -> Changes:
    return {"attention": {"variant": variant, "num_heads": heads, "num_kv_heads": kv_heads}}


def _window(size: int) -> Changes:
    return {"attention": {"mask_type": "sliding_window", "window_size": size}}


DOCUMENTS: Changes = {"attention": {"document_mask": True, "document_end": 0}}

# Each dimension's options as changes to a config. Any combination that `legal` lets through is one.
DIMENSIONS: dict[str, dict[str, Changes]] = {
    "attention": {
        "mha4": _attention("mha", 4),
        "gqa4/2": _attention("gqa", 4, 2),
        "gqa6/3": _attention("gqa", 6, 3),
        "gqa4/1": _attention("gqa", 4),
        "mqa4": _attention("mqa", 4),
        "complex4": _attention("complex", 4),
        "complex6": _attention("complex", 6),
    },
    "projections": {
        "plain": {},
        "qkv-bias": {"attention": {"qkv_bias": True}},
        "qk-norm": {"attention": {"qk_norm": True}},
    },
    "encoding": {
        "rope": {"positional": {"encoding": "rope"}},
        "rope/3": {"positional": {"encoding": "rope", "rope_base": 300.0, "rope_scaling": 3.0}},
        "llama3": {
            "positional": {
                "encoding": "rope",
                "rope_scaling": {
                    "type": "llama3",
                    "factor": 8.0,
                    "original_max_position_embeddings": 16,
                },
            }
        },
        "alibi": {"positional": {"encoding": "alibi"}},
        "sinusoidal": {"positional": {"encoding": "sinusoidal"}},
        "learned": {"positional": {"encoding": "learned"}},
        "nopos": {"positional": {"encoding": "none"}},
    },
    "mask": {
        "causal": {},
        "bidirectional": {"attention": {"mask_type": "bidirectional"}},
        "window1": _window(1),
        "window4": _window(4),
        "pattern": {"attention": {"window_pattern": [2, None]}},
    },
    "documents": {"": {}, "documents": DOCUMENTS},
    "ffn": {
        "swiglu": {"ffn": {"variant": "swiglu"}},
        "geglu": {"ffn": {"variant": "geglu"}},
        "mlp-silu": {"ffn": {"variant": "mlp", "activation": "silu"}},
        "mlp-gelu": {"ffn": {"variant": "mlp", "activation": "gelu", "expansion_factor": 4}},
        "mlp-relu": {"ffn": {"variant": "mlp", "activation": "relu", "ffn_dim": 40}},
    },
    "placement": {p: {"norm": {"placement": p}} for p in ("pre", "post", "sandwich")},
    "head_dim": {
        "D/N": {},
        "H4": {"attention": {"head_dim": 4}},
        "H5": {"attention": {"head_dim": 5}},
    },
    "norm": {
        "rmsnorm": {"norm": {"type": "rmsnorm", "eps": 1e-3}},
        "layernorm": {"norm": {"type": "layernorm", "eps": 1e-2}},
    },
    "attention bias": {"": {}, "attnbias": {"attention": {"bias": True}}},
    "ffn bias": {"": {}, "ffnbias": {"ffn": {"bias": True}}},
    "layers": {"": {}, "parallel": {"parallel_layers": True}},
    "head": {"tied": {}, "untied": {"tie_embeddings": False}},
    "cap": {"": {}, "softcap": {"logit_softcap": 3.0}},
    "init": {"": {}, "flatinit": {"residual_scaled_init": False}},
    "memory": {"": {}, "remat": {"gradient_checkpointing": True}},
}

Choice = tuple[str, str]  # of a dimension, of one of its options


def legal(row: dict[str, str]) -> bool:
    """Whether the options of a row, or of part of one, go together: rope needs an even head_dim,
    and complex queries have no norm."""
    rope = row.get("encoding", "").startswith(("rope", "llama3"))
    complex_norm = row.get("projections") == "qk-norm" and "complex" in row.get("attention", "")
    return not ((rope and row.get("head_dim") == "H5") or complex_norm)


def pairwise() -> list[dict[str, str]]:
    """Rows (dimension -> option) that hold, between them, every legal pair of options.

    Greedy: a row starts from a pair that is still missing and takes, dimension by dimension, the
    option that brings the most missing pairs.
    """
    missing = set(_pairs({(d, o) for d, options in DIMENSIONS.items() for o in options}))
    missing = {pair for pair in missing if legal(dict(pair))}
    order = {
        choice: i for i, choice in enumerate((d, o) for d, opts in DIMENSIONS.items() for o in opts)
    }
    rows = []
    while missing:
        row = dict(min(missing, key=lambda pair: [order[choice] for choice in sorted(pair)]))
        for dimension, options in DIMENSIONS.items():
            if dimension not in row:
                fitting = [option for option in options if legal({**row, dimension: option})]
                brings = [
                    sum(frozenset({c, (dimension, option)}) in missing for c in row.items())
                    for option in fitting
                ]
                row[dimension] = fitting[brings.index(max(brings))]
        missing -= set(_pairs(set(row.items())))
        rows.append({dimension: row[dimension] for dimension in DIMENSIONS})
    return rows


def _pairs(choices: set[Choice]) -> Iterator[frozenset[Choice]]:
    """All pairs of choices that belong to two dimensions."""
    return (
        frozenset(pair) for pair in itertools.combinations(choices, 2) if pair[0][0] != pair[1][0]
    )


def choices(section: str, field: str) -> list[str]:
    """The values that the config admits for one of its choices, in its order."""
    config = TransformerConfig.model_fields[section].annotation
    return list(typing.get_args(config.model_fields[field].annotation))


def config_of(row: dict[str, str]) -> TransformerConfig:
    return tiny(*(DIMENSIONS[dimension][option] for dimension, option in row.items()))


def name_of(row: dict[str, str]) -> str:
    return "-".join(option for option in row.values() if option)


@st.composite
def configs(draw: st.DrawFn) -> TransformerConfig:
    """Every legal architecture, of few dimensions, without dropout (the twins' random numbers
    differ). Sizes come from short lists, so that XLA's work on one example serves the next."""
    pick = lambda *options: draw(st.sampled_from(options))  # noqa: E731
    heads = pick(1, 4, 6)
    variant = pick(*choices("attention", "variant"))
    divisors = [k for k in range(1, heads + 1) if heads % k == 0]
    kv_heads = {"gqa": pick(None, *divisors)}.get(variant)
    encoding = pick(*choices("positional", "encoding"))
    head_dim = pick(None, 6) if encoding == "rope" else pick(None, 5)
    mask = pick(*choices("attention", "mask_type"))
    documents = pick(True, False)
    llama3 = {"type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32}
    rope = {"rope_base": pick(2.0, 1e4), "rope_scaling": pick(None, 0.7, 4.0, llama3)}
    return TransformerConfig.model_validate(
        {
            "vocab_size": 31,
            "max_seq_len": max(LENGTHS),
            "d_model": 24,
            "num_layers": pick(1, 2),
            "tie_embeddings": pick(True, False),
            "parallel_layers": pick(True, False),
            "logit_softcap": pick(None, None, 3.0),
            "init_std": pick(0.02, 1.0),
            "residual_scaled_init": pick(True, False),
            "gradient_checkpointing": pick(True, False),
            "attention": {
                "variant": variant,
                "num_heads": heads,
                "num_kv_heads": kv_heads,
                "head_dim": head_dim,
                "bias": pick(True, False),
                "qkv_bias": pick(True, False),
                "qk_norm": pick(True, False) and variant != "complex",
                "mask_type": mask,
                "window_size": pick(1, 4, 200) if mask == "sliding_window" else None,
                "window_pattern": pick(None, [3], [None, 1]) if mask == "causal" else None,
                "document_mask": documents,
                "document_end": pick(0, 30) if documents else None,
                "use_flash_attn": pick(True, False),
            },
            "positional": {"encoding": encoding, **(rope if encoding == "rope" else {})},
            "ffn": {
                "variant": pick(*choices("ffn", "variant")),
                "expansion_factor": pick(8 / 3, 4),
                "ffn_dim": pick(None, None, 40),
                "activation": pick(*choices("ffn", "activation")),
                "bias": pick(True, False),
            },
            "norm": {
                "type": pick(*choices("norm", "type")),
                "eps": pick(1e-5, 1e-2),
                "placement": pick(*choices("norm", "placement")),
            },
        }
    )


LENGTHS = (1, 12, 12, 12, 140)  # 140 crosses a block of attention's queries
