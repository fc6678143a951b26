"""The one place that knows both tensor layouts."""

from typing import TYPE_CHECKING

from light_llm.lazy import public

if TYPE_CHECKING:
    from conversion.weights import from_torch, load_torch, to_torch
    from light_jax.checkpoint.loading import load_jax
    from light_llm import __version__

__all__ = ["__version__", "from_torch", "load_jax", "load_torch", "to_torch"]

# load_jax belongs to light_jax and is offered here too, beside the other conversions.
__getattr__, __dir__ = public(
    __name__,
    {
        "__version__": "light_llm",
        "from_torch": "conversion.weights",
        "load_jax": "light_jax.checkpoint.loading",
        "load_torch": "conversion.weights",
        "to_torch": "conversion.weights",
    },
)
