"""Checkpoints on disk, for those who read them.

layout     where the files of a tag are, and whether they are whole
loading    a PyTorch model from them
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from light_llm.checkpoint.loading import load_transformer

__all__ = ["load_transformer"]

_HOMES = {"load_transformer": "loading"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
