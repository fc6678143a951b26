"""The one place that knows both tensor layouts."""

from typing import Any

__all__ = ["from_torch", "load_jax", "load_torch", "to_torch"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from conversion import weights

        return getattr(weights, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
