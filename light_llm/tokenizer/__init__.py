"""Tokenizers: byte-level BPE, characters, or anything of Hugging Face's, behind one interface.

kinds      what a tokenizer is; BPE and characters, trained here
loading    from a file, a folder or the hub
stream     text from ids that come one by one
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from light_llm.tokenizer.kinds import (
        MIN_BPE_VOCAB,
        UNKNOWN_CHAR,
        CharTokenizer,
        PythonTokenizer,
        SubwordTokenizer,
        Tokenizer,
        train_bpe,
        train_char,
    )
    from light_llm.tokenizer.loading import load_tokenizer
    from light_llm.tokenizer.stream import StreamDecoder

__all__ = [
    "MIN_BPE_VOCAB",
    "UNKNOWN_CHAR",
    "CharTokenizer",
    "PythonTokenizer",
    "StreamDecoder",
    "SubwordTokenizer",
    "Tokenizer",
    "load_tokenizer",
    "train_bpe",
    "train_char",
]

_HOMES = {"load_tokenizer": "loading", "StreamDecoder": "stream"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'kinds')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
