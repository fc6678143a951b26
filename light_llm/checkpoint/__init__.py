"""Checkpoints on disk: reading them.

layout     where the files of a tag are, and whether they are complete
loading    a PyTorch model from them
"""

from typing import TYPE_CHECKING

from light_llm.lazy import public

if TYPE_CHECKING:
    from light_llm.checkpoint.loading import load_transformer

__all__ = ["load_transformer"]

__getattr__, __dir__ = public(
    __name__,
    {
        "load_transformer": "light_llm.checkpoint.loading",
    },
)
