"""The decoder-only Transformer in Flax NNX, twin of `light_llm.models.transformer`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from light_jax.models.transformer.model import Transformer

__all__ = ["Transformer"]


def __getattr__(name: str) -> Any:
    if name == "Transformer":
        from light_jax.models.transformer.model import Transformer

        return Transformer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
