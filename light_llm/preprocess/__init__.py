"""Text -> parquet token shards (llm-preprocess)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from light_llm.preprocess.config import PreprocessConfig
    from light_llm.preprocess.entropy import unigram_entropy
    from light_llm.preprocess.pipeline import preprocess
    from light_llm.preprocess.summary import Summary

__all__ = ["PreprocessConfig", "Summary", "preprocess", "unigram_entropy"]

_HOMES = {
    "PreprocessConfig": "config",
    "Summary": "summary",
    "preprocess": "pipeline",
    "unigram_entropy": "entropy",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
