"""The decoder-only Transformer in Flax NNX, twin of `light_llm.models.transformer`."""

from typing import TYPE_CHECKING

from light_llm.lazy import public

if TYPE_CHECKING:
    from light_jax.models.transformer.model import Transformer

__all__ = ["Transformer"]

__getattr__, __dir__ = public(
    __name__,
    {
        "Transformer": "light_jax.models.transformer.model",
    },
)
