"""Text -> parquet token shards (llm-preprocess)."""

from typing import TYPE_CHECKING

from light_llm.lazy import public

if TYPE_CHECKING:
    from light_llm.preprocess.config import PreprocessConfig
    from light_llm.preprocess.entropy import unigram_entropy
    from light_llm.preprocess.pipeline import preprocess
    from light_llm.preprocess.summary import Summary

__all__ = ["PreprocessConfig", "Summary", "preprocess", "unigram_entropy"]

__getattr__, __dir__ = public(
    __name__,
    {
        "PreprocessConfig": "light_llm.preprocess.config",
        "Summary": "light_llm.preprocess.summary",
        "preprocess": "light_llm.preprocess.pipeline",
        "unigram_entropy": "light_llm.preprocess.entropy",
    },
)
