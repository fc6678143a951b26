"""The decoder-only Transformer in PyTorch; imports torch only when `Transformer` is asked for."""

from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name == "Transformer":
        from light_llm.models.transformer.model import Transformer

        return Transformer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
