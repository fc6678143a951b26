"""TransformerConfig: every architecture choice, its default and its rule, written once.

Shared by the JAX and the PyTorch model; imports neither framework.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from light_llm.configfile import Config, derived

Positive = Annotated[int, Field(ge=1, lt=2**31)]  # sizes and steps are int32 on the devices
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]


def _is_section(value: Any) -> bool:
    return isinstance(value, Mapping | Config)


class AttentionConfig(Config):
    variant: Literal["mha", "gqa", "mqa", "complex"] = "gqa"
    num_heads: Positive = 8
    num_kv_heads: Positive = derived()
    """mha, complex: num_heads; mqa: 1; gqa: a quarter of num_heads, at least 1."""
    head_dim: Positive = derived()
    """d_model // num_heads; TransformerConfig sets it."""
    dropout: Rate = 0.0
    bias: bool = False
    """On every projection."""
    qkv_bias: bool = False
    """On the projections of queries, keys and values, as if `bias` were theirs alone."""
    qk_norm: bool = False
    """RMSNorm over each head of queries and of keys, before rope."""
    mask_type: Literal["causal", "bidirectional", "sliding_window"] = "causal"
    window_size: Positive | None = None
    """For sliding_window only, which needs it."""
    window_pattern: list[Positive | None] | None = None
    """Windows of the layers, repeated over them; None sees the whole past. For causal only."""
    document_mask: bool = False
    """A token attends within its own document, and positions begin at 0 in each."""
    document_end: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """The id that ends a document. A run takes it from the tokenizer of its data."""
    use_flash_attn: bool = False

    @field_validator("window_pattern", mode="before")
    @classmethod
    def _windows(cls, value: Any) -> Any:
        listed = isinstance(value, list | tuple) and len(value) > 0
        if value is not None and (not listed or any(isinstance(each, bool) for each in value)):
            raise ValueError("must be a list of whole numbers and null, such as [512, 512, null]")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        heads, kv_heads = self.num_heads, self.num_kv_heads
        only = {"mha": heads, "complex": heads, "mqa": 1}.get(self.variant)
        if kv_heads is None:
            kv_heads = only or max(1, heads // 4)
            self.derive(num_kv_heads=kv_heads)
        if only and kv_heads != only:
            raise ValueError(
                f"num_kv_heads={kv_heads} contradicts variant={self.variant!r}, "
                f"which has {only}; leave it out or use variant gqa"
            )
        if heads % kv_heads:
            legal = ", ".join(str(k) for k in range(1, heads + 1) if heads % k == 0)
            raise ValueError(
                f"num_kv_heads={kv_heads} does not divide num_heads={heads}; use one of {legal}"
            )
        if self.qk_norm and self.variant == "complex":
            raise ValueError(
                "qk_norm=true has no meaning for variant='complex'; use false or another variant"
            )
        if self.mask_type == "sliding_window" and self.window_size is None:
            raise ValueError(
                "window_size=None must be set for mask_type='sliding_window'; use 1 or more"
            )
        if self.mask_type != "sliding_window" and self.window_size is not None:
            warnings.warn(
                f"attention.window_size={self.window_size} has no effect with "
                f"mask_type={self.mask_type!r}",
                stacklevel=2,
            )
        if self.window_pattern is not None and self.mask_type != "causal":
            raise ValueError(
                f"window_pattern={self.window_pattern} needs mask_type='causal', not "
                f"mask_type={self.mask_type!r}; leave one of them out"
            )
        if self.document_end is not None and not self.document_mask:
            warnings.warn(
                f"attention.document_end={self.document_end} has no effect with "
                "document_mask=False",
                stacklevel=2,
            )
        return self


class RopeScaling(Config):
    """How rope is stretched to more positions than a model was trained for."""

    type: Literal["linear", "llama3"]
    factor: PositiveFloat
    low_freq_factor: PositiveFloat = 1.0
    """For llama3, like the two below: 8192 / 1 positions or more are a long wave."""
    high_freq_factor: PositiveFloat = 4.0
    original_max_position_embeddings: Positive = 8192

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = self.model_fields_set - {"type", "factor"}
        if self.type == "linear" and given:
            raise ValueError(f"{', '.join(sorted(given))} has no effect with type='linear'")
        if self.type == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor={self.low_freq_factor:g} must be below "
                f"high_freq_factor={self.high_freq_factor:g}"
            )
        return self


class PositionalConfig(Config):
    encoding: Literal["rope", "alibi", "sinusoidal", "learned", "none"] = "rope"
    rope_base: PositiveFloat = 10000.0
    rope_scaling: (
        Annotated[
            Annotated[PositiveFloat, Tag("(number)")] | Annotated[RopeScaling, Tag("(section)")],
            Discriminator(lambda value: "(section)" if _is_section(value) else "(number)"),
        ]
        | None
    ) = None
    """A number, to which type linear is turned, is its factor."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.rope_scaling, RopeScaling) and self.rope_scaling.type == "linear":
            self.derive(rope_scaling=self.rope_scaling.factor)
        if self.rope_scaling is not None and self.encoding != "rope":
            warnings.warn(
                f"positional.rope_scaling has no effect with encoding={self.encoding!r}",
                stacklevel=2,
            )
        return self


class FFNConfig(Config):
    variant: Literal["swiglu", "geglu", "mlp"] = "swiglu"
    expansion_factor: PositiveFloat = 8 / 3
    ffn_dim: Positive | None = None
    """The width itself, in the place of expansion_factor."""
    dropout: Rate = 0.0
    activation: Literal["silu", "gelu", "relu"] = "silu"
    """For mlp only."""
    bias: bool = False


class NormConfig(Config):
    type: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    eps: PositiveFloat = 1e-5
    placement: Literal["pre", "post", "sandwich"] = "pre"


class TransformerConfig(Config):
    """Architecture of a decoder-only Transformer (its keys: docs/train.md).

    Fields that follow from others are set when the config is made, so a dump holds their numbers.
    """

    vocab_size: Positive = 32000
    max_seq_len: Positive = 2048
    d_model: Positive = 512
    num_layers: Positive = 6
    dropout: Rate = 0.0
    tie_embeddings: bool = True
    parallel_layers: bool = False
    init_std: PositiveFloat = 0.02
    residual_scaled_init: bool = True
    logit_softcap: PositiveFloat | None = None
    """logits ← cap · tanh(logits / cap)."""
    gradient_checkpointing: bool | Literal["matmuls"] = False
    attention: AttentionConfig = AttentionConfig()
    positional: PositionalConfig = PositionalConfig()
    ffn: FFNConfig = FFNConfig()
    norm: NormConfig = NormConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        attention = self.attention
        if attention.head_dim is None:
            head_dim = self.d_model // attention.num_heads
            if head_dim < 1:
                raise ValueError(
                    f"attention.num_heads={attention.num_heads} exceeds d_model={self.d_model}; "
                    f"lower it or set attention.head_dim"
                )
            attention = attention.model_copy(update={"head_dim": head_dim})
            self.derive(attention=attention)
        pattern = attention.window_pattern or []
        if self.num_layers < len(pattern):
            warnings.warn(
                f"attention.window_pattern={pattern} is longer than num_layers={self.num_layers}; "
                "the rest of it has no effect",
                stacklevel=2,
            )
        if self.positional.encoding == "rope" and attention.head_dim % 2:
            raise ValueError(
                f"attention.head_dim={attention.head_dim} must be even for positional.encoding="
                f"'rope'; use {attention.head_dim + 1}, another num_heads or another encoding"
            )
        return self

    @property
    def ffn_dim(self) -> int:
        """Width F: ffn.ffn_dim, or d_model · expansion_factor rounded up to a multiple of 64."""
        if self.ffn.ffn_dim is not None:
            return self.ffn.ffn_dim
        return math.ceil(int(self.d_model * self.ffn.expansion_factor) / 64) * 64

    @property
    def residual_init_std(self) -> float:
        """Standard deviation of the projections that write to the residual stream (GPT-2)."""
        scale = math.sqrt(2 * self.num_layers) if self.residual_scaled_init else 1.0
        return self.init_std / scale
