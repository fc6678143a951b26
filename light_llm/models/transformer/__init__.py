"""The decoder-only Transformer in PyTorch; imports torch only when `Transformer` is asked for."""

from typing import TYPE_CHECKING

from light_llm.lazy import public
from light_llm.models.transformer.config import (
    AttentionConfig,
    FFNConfig,
    NormConfig,
    PositionalConfig,
    TransformerConfig,
)

if TYPE_CHECKING:
    from light_llm.models.transformer.model import Transformer

__all__ = [
    "AttentionConfig",
    "FFNConfig",
    "NormConfig",
    "PositionalConfig",
    "Transformer",
    "TransformerConfig",
]

__getattr__, __dir__ = public(
    __name__,
    {
        "Transformer": "light_llm.models.transformer.model",
    },
)
