"""A model as an architecture of llama.cpp: which one, and the names and the order of its tensors.

llama.cpp builds a model from the name of its architecture, in code. So only what one of its
architectures computes can be written: llama, qwen2 and qwen3. Its llama turns rope's pairs side by
side, (x0, x1), (x2, x3), and so on; ours and its qwens turn halves: x0 with xH/2, x1 with the next.
For llama the rows of queries and keys are put in that order.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from conversion.families import family_of
from conversion.mapping import table
from light_llm.errors import UserError
from light_llm.models.transformer.config import RopeScaling, TransformerConfig
from light_llm.models.transformer.frequencies import rope_frequencies

DTYPES = {"float32": "F32", "float16": "F16", "q8_0": "Q8_0"}
"""`--dtype` -> GGUF's name."""
BLOCK = 32  # numbers of a row that share a scale in q8_0

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""The family of a model -> llama.cpp's architecture."""

TOP = {"tok_emb": "token_embd", "final_norm": "output_norm", "lm_head": "output"}
IN_A_LAYER = {
    "norm1": "attn_norm",
    "attn.q_proj": "attn_q",
    "attn.k_proj": "attn_k",
    "attn.v_proj": "attn_v",
    "attn.q_norm": "attn_q_norm",
    "attn.k_norm": "attn_k_norm",
    "attn.out_proj": "attn_output",
    "norm2": "ffn_norm",
    "ffn.gate_proj": "ffn_gate",
    "ffn.up_proj": "ffn_up",
    "ffn.down_proj": "ffn_down",
}


class Tensor(NamedTuple):
    """A tensor of the output: its name and shape there, and how its numbers are written."""

    name: str
    shape: tuple[int, ...]
    kind: str  # F32, F16 or Q8_0
    key: str  # ours
    heads: int | None = None  # whose rows are put in the order of rope's pairs

    @property
    def size(self) -> int:
        """Bytes. A block of q8_0 is its scale in float16 and a byte for each number."""
        numbers = math.prod(self.shape)
        if self.kind == "Q8_0":
            return numbers // BLOCK * (BLOCK + 2)
        return numbers * (2 if self.kind == "F16" else 4)


def architecture_of(cfg: TransformerConfig, source: object) -> str:
    """llama.cpp's architecture for a model.

    Raises:
        UserError: it has none; names the settings.
    """
    family, problems = family_of(cfg)
    architecture = ARCHITECTURES[family] if family else None
    att, heads_dim = cfg.attention, cfg.attention.num_heads * cfg.attention.head_dim
    if cfg.ffn.variant == "geglu":
        problems.append("ffn.variant='geglu' (its gate is silu)")
    if family == "mistral" and (att.window_size or 0) + 1 < cfg.max_seq_len:
        problems.append(
            f"attention.window_size={att.window_size} below max_seq_len - 1={cfg.max_seq_len - 1} "
            "(it has no window in this architecture, so that longer texts would be attended whole)"
        )
    if architecture in ("qwen2", "qwen3") and isinstance(cfg.positional.rope_scaling, RopeScaling):
        problems.append(f"positional.rope_scaling of type llama3 in {architecture}")
    if architecture == "qwen3" and att.bias:
        problems.append("attention.bias=True with attention.qk_norm")
    if architecture == "qwen2" and heads_dim != cfg.d_model:
        problems.append(f"num_heads · head_dim={heads_dim} unlike d_model={cfg.d_model} in qwen2")
    if problems or architecture is None:
        raise UserError(
            f"{source}: llama.cpp has no model with {'; '.join(problems)}; use llm-run, or "
            "llm-convert onnx"
        )
    return architecture


def plan(cfg: TransformerConfig, architecture: str, dtype: str) -> list[Tensor]:
    """The tensors of the output that a weights file holds, in our order."""
    return [
        Tensor(
            gguf_name(entry.key),
            entry.shape,
            _kind(entry.shape, dtype),
            entry.key,
            _paired_heads(entry.key, cfg) if architecture == "llama" else None,
        )
        for entry in table(cfg)
    ]


def gguf_name(key: str) -> str:
    """Our PyTorch key, `layers.0.attn.q_proj.weight`, as llama.cpp calls it."""
    *module, leaf = key.split(".")
    if module[0] != "layers":
        return f"{TOP[module[0]]}.{leaf}"
    return f"blk.{module[1]}.{IN_A_LAYER['.'.join(module[2:])]}.{leaf}"


def _kind(shape: tuple[int, ...], dtype: str) -> str:
    if len(shape) == 1:
        return "F32"  # llama.cpp adds and multiplies with these in float32
    if dtype == "q8_0" and shape[-1] % BLOCK:
        return "F16"
    return DTYPES[dtype]


def _paired_heads(key: str, cfg: TransformerConfig) -> int | None:
    if ".q_proj." in key:
        return cfg.attention.num_heads
    return cfg.attention.num_kv_heads if ".k_proj." in key else None


def paired(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys: each head's halves [a0 a1 … b0 b1 …] as pairs [a0 b0 a1 b1 …]."""
    rows, *columns = array.shape
    halves = array.reshape(heads, 2, rows // heads // 2, *columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)


def rope_factors(cfg: TransformerConfig) -> np.ndarray | None:
    """What llama.cpp divides rope's frequencies by, float32 [H / 2]; None for all but llama3."""
    if not isinstance(cfg.positional.rope_scaling, RopeScaling):
        return None
    plain = cfg.positional.model_copy(update={"rope_scaling": None})
    head_dim = cfg.attention.head_dim
    return rope_frequencies(plain, head_dim) / rope_frequencies(cfg.positional, head_dim)
