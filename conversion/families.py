"""The model families of Hugging Face transformers that are ours under other names.

Llama, Mistral, Qwen2 and Qwen3 are decoders with rope in halves, RMSNorm before each sub-layer and
a gated ffn. So a model of theirs is a config and a renaming of keys; no number changes. Imports no
framework, and transformers neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conversion.config_json import check_types
from conversion.mapping import TIED_KEY, keys
from light_llm.errors import UserError
from light_llm.models.transformer.config import RopeScaling, TransformerConfig

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""`model_type` of a config.json -> its class."""

ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu"}
"""`ffn.variant` -> `hidden_act`."""

# What a config.json may leave out, as the classes of transformers fill it in.
COMMON = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": COMMON | {"max_position_embeddings": 2048},
    "mistral": COMMON | {"max_position_embeddings": 131072, "sliding_window": 4096},
    "qwen2": COMMON | {"max_position_embeddings": 32768},
    "qwen3": COMMON | {"max_position_embeddings": 32768, "head_dim": 128},
}
KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}
"""`num_key_value_heads` where it is left out; `null`, and in llama both, is as many as heads."""

TOP = {
    "tok_emb": "model.embed_tokens",
    "final_norm": "model.norm",
    "lm_head": "lm_head",
}
IN_A_LAYER = {
    "attn.out_proj": "self_attn.o_proj",
    "attn": "self_attn",
    "ffn": "mlp",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
}


def family_of(cfg: TransformerConfig) -> tuple[str | None, list[str]]:
    """(`model_type` of the family that has this model, []), or (None, the settings that none has).

    Dropout is not counted: it is off where a model is used.
    """
    att = cfg.attention
    foreign = [
        f"{name}={value!r}"
        for name, value, wanted in [
            ("attention.variant", att.variant, ("mha", "gqa", "mqa")),
            ("attention.mask_type", att.mask_type, ("causal", "sliding_window")),
            ("attention.window_pattern", att.window_pattern, (None,)),
            ("positional.encoding", cfg.positional.encoding, ("rope",)),
            ("ffn.variant", cfg.ffn.variant, tuple(ACTIVATIONS)),
            ("norm.type", cfg.norm.type, ("rmsnorm",)),
            ("norm.placement", cfg.norm.placement, ("pre",)),
            ("parallel_layers", cfg.parallel_layers, (False,)),
            ("logit_softcap", cfg.logit_softcap, (None,)),
        ]
        if value not in wanted
    ]
    if foreign:
        return None, foreign
    slides, only_qkv = att.mask_type == "sliding_window", att.qkv_bias and not att.bias
    special = {
        "attention.qk_norm": att.qk_norm,
        "attention.qkv_bias": only_qkv,
        "attention.mask_type='sliding_window'": slides,
        "attention.bias": att.bias,
        "ffn.bias": cfg.ffn.bias,
    }
    wanted = {name for name, is_set in special.items() if is_set}
    for family, has in {
        "llama": {"attention.bias", "ffn.bias"},
        "mistral": {"attention.mask_type='sliding_window'"},
        "qwen2": {"attention.qkv_bias"},
        "qwen3": {"attention.qk_norm", "attention.bias"},
    }.items():
        if wanted <= has:
            return family, []
    return None, [" with ".join(name for name in special if name in wanted)]


def across_documents(cfg: TransformerConfig, elsewhere: str) -> list[str]:
    """What to tell of a model with `attention.document_mask`, which no family has."""
    told = (
        f"attention.document_mask is not known to {elsewhere}: a text of one document gives the "
        "same logits there; one with an end mark inside is attended whole"
    )
    return [told] if cfg.attention.document_mask else []


def hf_config(cfg: TransformerConfig, family: str) -> dict[str, Any]:
    """The architecture as the `config.json` of a family from `family_of`.

    Rope is written as versions 4 and 5 of transformers both read it.
    """
    att = cfg.attention
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.d_model,
        "intermediate_size": cfg.ffn_dim,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": att.num_heads,
        "num_key_value_heads": att.num_kv_heads,
        "head_dim": att.head_dim,
        "max_position_embeddings": cfg.max_seq_len,
        "hidden_act": ACTIVATIONS[cfg.ffn.variant],
        "rms_norm_eps": cfg.norm.eps,
        "rope_theta": cfg.positional.rope_base,
        "rope_scaling": _hf_scaling(cfg),
        "initializer_range": cfg.init_std,
        "attention_dropout": att.dropout,
        "tie_word_embeddings": cfg.tie_embeddings,
        "use_cache": True,
    }
    if family in ("llama", "qwen3"):
        config["attention_bias"] = att.bias
    if family == "llama":
        config["mlp_bias"] = cfg.ffn.bias
    if family == "mistral":
        # its window counts the query itself, ours the keys before it
        window = att.window_size if att.mask_type == "sliding_window" else None
        config["sliding_window"] = None if window is None else window + 1
    if family.startswith("qwen"):
        config["use_sliding_window"] = False
    return config


def _hf_scaling(cfg: TransformerConfig) -> dict[str, Any] | None:
    scaling = cfg.positional.rope_scaling
    if scaling is None or scaling == 1.0:
        return None
    if isinstance(scaling, RopeScaling):
        return {"rope_type": "llama3"} | scaling.model_dump(exclude={"type"})
    return {"rope_type": "linear", "factor": scaling}


def our_config(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The section `model` of our config for a family's `config.json`.

    Args:
        source: the file, for messages.

    Raises:
        UserError: another family, or settings that our model does not have, all in one message.
    """
    family = str(config.get("model_type"))
    if family not in ARCHITECTURES:
        raise UserError(
            f"{source}: model_type={config.get('model_type')!r} is a family that is not read; "
            f"use a model of {', '.join(ARCHITECTURES)}"
        )
    check_types(config, source)
    has = DEFAULTS[family] | {key: value for key, value in config.items() if value is not None}
    problems = _what_we_lack(has)
    rope, scaling = _rope(has, problems)
    if problems:
        raise UserError(
            f"{source}: a {family} model with {'; '.join(problems)} cannot be expressed here"
        )
    heads = has["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", KV_HEADS.get(family)) or heads
    window = _window(has, config, family)
    attention_bias = bool(has["attention_bias"]) and family in ("llama", "qwen3")
    return {
        "vocab_size": has["vocab_size"],
        "max_seq_len": has["max_position_embeddings"],
        "d_model": has["hidden_size"],
        "num_layers": has["num_hidden_layers"],
        "tie_embeddings": has["tie_word_embeddings"],
        "init_std": has["initializer_range"],
        "attention": {
            "variant": {heads: "mha", 1: "mqa"}.get(kv_heads, "gqa"),
            "num_heads": heads,
            "num_kv_heads": kv_heads,
            "head_dim": has.get("head_dim", has["hidden_size"] // heads),
            "dropout": has["attention_dropout"],
            "bias": attention_bias,
            "qkv_bias": family == "qwen2",
            "qk_norm": family == "qwen3",
            "mask_type": "causal" if window is None else "sliding_window",
            "window_size": window,
        },
        "positional": {"encoding": "rope", "rope_base": rope, "rope_scaling": scaling},
        "ffn": {
            "variant": "geglu" if has["hidden_act"] == "gelu" else "swiglu",
            "ffn_dim": has["intermediate_size"],
            "bias": bool(has["mlp_bias"]) and family == "llama",
        },
        "norm": {"type": "rmsnorm", "eps": has["rms_norm_eps"], "placement": "pre"},
    }


def _what_we_lack(has: Mapping[str, Any]) -> list[str]:
    problems = []
    if has["hidden_act"] not in ("silu", "swish", "gelu"):
        problems.append(f"hidden_act={has['hidden_act']!r}")
    few = has.get("max_window_layers", 28)
    if has.get("use_sliding_window") and few < has["num_hidden_layers"]:
        problems.append("use_sliding_window=true (windows in some layers only)")
    elif any(kind != "full_attention" for kind in has.get("layer_types", ())) and (
        has["model_type"] != "mistral"
    ):
        problems.append("layer_types other than full_attention")
    rope = has.get("rope_parameters") or {}
    turned = rope.get("partial_rotary_factor", has.get("partial_rotary_factor", 1.0))
    if turned not in (None, 1.0):
        problems.append(f"partial_rotary_factor={turned}")
    if "quantization_config" in has:
        problems.append("quantized weights (quantization_config)")
    return problems


def _rope(
    has: Mapping[str, Any], problems: list[str]
) -> tuple[float, float | dict[str, Any] | None]:
    """(base, `positional.rope_scaling`); adds to `problems` a scaling that we do not have."""
    given = has.get("rope_parameters") or has.get("rope_scaling") or {}
    base = given.get("rope_theta", has["rope_theta"])
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return base, None
    if kind == "linear" and given.get("factor") is not None:
        return base, given["factor"]
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        original = given.get(
            "original_max_position_embeddings", has.get("original_max_position_embeddings")
        )
        return base, {"type": "llama3", "original_max_position_embeddings": original} | {
            name: given.get(name) for name in names
        }
    problems.append(f"rope_scaling of type {kind!r} (linear, with a factor, and llama3 are here)")
    return base, None


def _window(has: Mapping[str, Any], config: Mapping[str, Any], family: str) -> int | None:
    """`attention.window_size`; null in the config.json, or as long as the context, is none."""
    if family != "mistral" or config.get("sliding_window", 0) is None:
        return None
    window = int(has["sliding_window"])
    return None if window >= int(has["max_position_embeddings"]) else window - 1


def hf_key(key: str) -> str:
    """Our PyTorch key, `layers.0.attn.out_proj.weight`, as these families call it."""
    parts = key.split(".")
    if parts[0] != "layers":
        return ".".join([TOP[parts[0]], *parts[1:]])
    inner = ".".join(parts[2:])
    for ours, theirs in IN_A_LAYER.items():
        if inner.startswith(f"{ours}."):
            return f"model.layers.{parts[1]}.{theirs}{inner.removeprefix(ours)}"
    raise ValueError(f"{key} is in none of these families")


def hf_keys(cfg: TransformerConfig) -> dict[str, str]:
    """Our key -> theirs, of every tensor that a family's file has; a tied head is in none."""
    return {key: hf_key(key) for key in keys(cfg) if not (cfg.tie_embeddings and key == TIED_KEY)}


def our_key(key: str) -> str | None:
    """A key of theirs as we call it, or None if these families have none like it."""
    parts = key.split(".")
    if parts[:2] == ["model", "layers"] and len(parts) > 4:
        inner = ".".join(parts[3:])
        found = [
            f"layers.{parts[2]}.{ours}{inner.removeprefix(theirs)}"
            for ours, theirs in IN_A_LAYER.items()
            if inner.startswith(f"{theirs}.")
        ]
    else:
        stem, _, end = key.rpartition(".")
        found = [f"{ours}.{end}" for ours, theirs in TOP.items() if stem == theirs]
    return next((name for name in found if hf_key(name) == key), None)
