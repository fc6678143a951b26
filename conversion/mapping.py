"""One table: JAX path <-> PyTorch key. Every conversion in both directions uses it.

Letters: N heads, K kv-heads, H head_dim, D model, F ffn, V vocab.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from light_llm.models.transformer.config import TransformerConfig

Path = tuple[str | int, ...]


class Entry(NamedTuple):
    """One parameter in both layouts.

    `path` is its place in the `nnx.State`; `shape` is PyTorch's. A `transposed` entry is a linear
    layer's weight: [out, in] in PyTorch, [in, out] in JAX.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def jax_shape(self) -> tuple[int, ...]:
        return self.shape[::-1] if self.transposed else self.shape


TIED_KEY = "lm_head.weight"  # in a tied model's file: a copy of tok_emb.weight, in no JAX tree


def table(cfg: TransformerConfig) -> list[Entry]:
    """The model's parameters, in the order of the PyTorch model's `parameters()`."""
    return list(_entries(cfg))


def keys(cfg: TransformerConfig) -> list[str]:
    """The PyTorch state dict's keys, in order; a tied model's ends with its copy of the head."""
    return [entry.key for entry in table(cfg)] + [TIED_KEY] * cfg.tie_embeddings


def parameter_groups(cfg: TransformerConfig) -> tuple[list[Entry], list[Entry]]:
    """The optimizer's groups: tensors with two or more dimensions, which decay, and the others."""
    entries = table(cfg)
    return [e for e in entries if len(e.shape) >= 2], [e for e in entries if len(e.shape) < 2]


def idle_keys(cfg: TransformerConfig) -> set[str]:
    """Keys of parameters that no output depends on, so they never have a gradient."""
    idle = ("post_norm1", "post_norm2") if cfg.parallel_layers else ()
    return {entry.key for entry in table(cfg) if any(name in entry.path for name in idle)}


def _entries(cfg: TransformerConfig) -> Iterator[Entry]:
    V, D = cfg.vocab_size, cfg.d_model
    yield Entry(("tok_emb", "weight"), "tok_emb.weight", (V, D))
    if cfg.positional.encoding == "learned":
        yield Entry(("pos_emb", "emb", "weight"), "pos_emb.emb.weight", (cfg.max_seq_len, D))
    for i in range(cfg.num_layers):
        for name, out_dim, in_dim in _attention(cfg):
            bias = cfg.attention.bias or (cfg.attention.qkv_bias and name != "out_proj")
            yield from _linear(("layers", i, "attn", name), out_dim, in_dim, bias)
        for name in ("q_norm", "k_norm") if cfg.attention.qk_norm else ():
            key = f"layers.{i}.attn.{name}.weight"
            yield Entry(("layers", i, "attn", name, "weight"), key, (cfg.attention.head_dim,))
        for name, out_dim, in_dim in _ffn(cfg):
            yield from _linear(("layers", i, "ffn", name), out_dim, in_dim, cfg.ffn.bias)
        yield _norm(("layers", i, "norm1"), cfg)
        yield _norm(("layers", i, "norm2"), cfg)
        if cfg.norm.placement == "sandwich":
            yield _norm(("layers", i, "post_norm1"), cfg)
            yield _norm(("layers", i, "post_norm2"), cfg)
    yield _norm(("final_norm",), cfg)
    if not cfg.tie_embeddings:
        yield Entry(("lm_head", "weight"), "lm_head.weight", (V, D))


def _attention(cfg: TransformerConfig) -> list[tuple[str, int, int]]:
    att, D = cfg.attention, cfg.d_model
    NH, KH = att.num_heads * att.head_dim, att.num_kv_heads * att.head_dim
    if att.variant == "complex":
        queries_keys = [(name, NH, D) for name in ("q_re", "q_im", "k_re", "k_im")]
    else:
        queries_keys = [("q_proj", NH, D), ("k_proj", KH, D)]
    return [*queries_keys, ("v_proj", KH, D), ("out_proj", D, NH)]


def _ffn(cfg: TransformerConfig) -> list[tuple[str, int, int]]:
    D, F = cfg.d_model, cfg.ffn_dim
    if cfg.ffn.variant == "mlp":
        return [("fc1", F, D), ("fc2", D, F)]
    return [("gate_proj", F, D), ("up_proj", F, D), ("down_proj", D, F)]


def _linear(path: Path, out_dim: int, in_dim: int, bias: bool) -> Iterator[Entry]:
    key = ".".join(map(str, path))
    yield Entry((*path, "kernel"), f"{key}.weight", (out_dim, in_dim), transposed=True)
    if bias:
        yield Entry((*path, "bias"), f"{key}.bias", (out_dim,))


def _norm(path: Path, cfg: TransformerConfig) -> Entry:
    key = ".".join(map(str, path))
    nested = ".norm" if cfg.norm.type == "layernorm" else ""
    return Entry((*path, "weight"), f"{key}{nested}.weight", (cfg.d_model,))
