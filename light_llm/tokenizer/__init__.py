"""Tokenizers: byte-level BPE, characters, or anything of Hugging Face's, behind one interface.

kinds      what a tokenizer is; BPE and characters, trained here
loading    from a file, a folder or the hub
words      short enough to train BPE on
stream     text from ids that come one by one
"""

from typing import TYPE_CHECKING

from light_llm.lazy import public

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

__getattr__, __dir__ = public(
    __name__,
    {
        "MIN_BPE_VOCAB": "light_llm.tokenizer.kinds",
        "UNKNOWN_CHAR": "light_llm.tokenizer.kinds",
        "CharTokenizer": "light_llm.tokenizer.kinds",
        "PythonTokenizer": "light_llm.tokenizer.kinds",
        "StreamDecoder": "light_llm.tokenizer.stream",
        "SubwordTokenizer": "light_llm.tokenizer.kinds",
        "Tokenizer": "light_llm.tokenizer.kinds",
        "load_tokenizer": "light_llm.tokenizer.loading",
        "train_bpe": "light_llm.tokenizer.kinds",
        "train_char": "light_llm.tokenizer.kinds",
    },
)
