"""Small tokenizers of the families that gigatoken encodes for, and documents to try them on."""

from __future__ import annotations

import functools
import inspect
import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from light_llm.preprocess import battery
from light_llm.preprocess.disputed import table
from light_llm.preprocess.proven import PATTERNS
from light_llm.tokenizer import SubwordTokenizer, train_bpe

SENTENCES = (
    "Größe, naïve café, œuvre: Привет, мир! 你好世界，今天天气很好。 こんにちは世界 안녕하세요 "
    "שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก 😀👍🏽👨‍👩‍👧 e\u0301 ½ ² ① ٣ it's they'LL 12345 "
)
BYTES = pre_tokenizers.ByteLevel.alphabet()


def texts() -> list[str]:
    sources = (json, random, inspect, functools)
    return [inspect.getsource(source) for source in sources] + [SENTENCES] * 20


def plain_bytes(**options: Any) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False} | options)


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    """As Llama 3, Qwen and GPT-4o write it in tokenizer.json."""
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated"), plain_bytes(use_regex=False)]
    return pre_tokenizers.Sequence(steps)


def byte_level(
    splitter: pre_tokenizers.PreTokenizer,
    normalizer: normalizers.Normalizer | None = None,
    vocab_size: int = 1500,
    **model: Any,
) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(**model))
    backend.pre_tokenizer = splitter
    if normalizer is not None:
        backend.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(BYTES),
        show_progress=False,
    )
    backend.train_from_iterator(texts(), trainer)
    return backend


def llama2(**changes: Any) -> tokenizers.Tokenizer:
    """A BPE of characters that falls back to bytes; `changes` of its tokenizer.json."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    space = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence(space)
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # to train
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=150,
        show_progress=False,
    )
    backend.train_from_iterator((line for text in texts() for line in text.split("\n")), trainer)
    content = json.loads(backend.to_str()) | {"pre_tokenizer": None} | changes
    content["added_tokens"] = content["added_tokens"][: len(special)]
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def metaspace(scheme: str) -> tokenizers.Tokenizer:
    step = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    return llama2(normalizer=None, pre_tokenizer=step)


def gemma() -> tokenizers.Tokenizer:
    space = {"pattern": {"String": " "}}
    return llama2(
        normalizer={"type": "Replace", "content": "▁"} | space,
        pre_tokenizer={"type": "Split", "behavior": "MergedWithPrevious", "invert": False} | space,
    )


def ours() -> tokenizers.Tokenizer:
    return train_bpe(texts(), 1500).backend


def with_whole_words() -> tokenizers.Tokenizer:
    """As Llama 3's: words that no merge makes are tokens."""
    backend = byte_level(split(PATTERNS["Llama 3"]), ignore_merges=True)
    content = json.loads(backend.to_str())
    vocabulary = content["model"]["vocab"]
    cut = plain_bytes(use_regex=False).pre_tokenize_str
    for word in sorted({f" {word}" for text in texts() for word in text.split()}):
        vocabulary.setdefault(cut(word)[0][0], len(vocabulary))
    return tokenizers.Tokenizer.from_str(json.dumps(content))


FAMILIES = {
    "ours": ours,
    "GPT-2": lambda: byte_level(plain_bytes()),
    "GPT-2, space first": lambda: byte_level(plain_bytes(add_prefix_space=True)),
    "Llama 3": with_whole_words,
    "Qwen 2": lambda: byte_level(split(PATTERNS["Qwen 2"]), normalizers.NFC()),
    "Qwen 3.5": lambda: byte_level(split(PATTERNS["Qwen 3.5"]), normalizers.NFC()),
    "GPT-4o": lambda: byte_level(split(PATTERNS["GPT-4o"])),
    "Llama 2": llama2,
    "Gemma": gemma,
    "Metaspace first": lambda: metaspace("first"),
    "Metaspace always": lambda: metaspace("always"),
}


@functools.cache
def family(name: str) -> SubwordTokenizer:
    backend = FAMILIES[name]()
    end = "<|endoftext|>" if backend.token_to_id("<|endoftext|>") is not None else "</s>"
    tokenizer = SubwordTokenizer(backend, end)
    tokenizer.backend.encode_special_tokens = name == "ours"
    return tokenizer


def documents(number: int, seed: int = 1) -> Iterator[str]:
    """Random documents of pieces, words of sources and characters from all of Unicode, some of them
    disputed."""
    draw = random.Random(seed)
    words = [word for text in texts() for word in text.split(" ")]
    known = np.flatnonzero(~table()).tolist()
    early = [code for code in known if code < 0x3000]
    for _ in range(number):
        parts = []
        for _ in range(draw.randrange(40)):
            kind = draw.random()
            if kind < 0.5:
                parts.append(draw.choice(battery.PIECES))
            elif kind < 0.75:
                parts.append(draw.choice(words))
            elif kind < 0.995:
                parts.append(chr(draw.choice(early if kind < 0.9 else known)))
            else:
                code = draw.choice((0x323B0, 0x11D97, 0x88F, draw.randrange(0xD800)))
                parts.append(chr(code))
        yield "".join(parts)


def revealing(tokenizer: SubwordTokenizer) -> tokenizers.Tokenizer:
    """The byte-level tokenizer with a vocabulary in which ids show where words end: a byte of a
    character beyond ASCII merges with a letter, digit, mark, space or line end before and behind
    it, and with another such character's."""
    content = json.loads(tokenizer.backend.to_str())
    symbols = _symbols()
    ascii_ones = [symbols[ord(character)] for character in "a1!Z' \n"]
    beyond, tails, heads = symbols[128:], symbols[128:192], symbols[192:]
    merges = [[one, byte] for one in ascii_ones for byte in beyond]
    merges += [[byte, one] for byte in tails for one in ascii_ones]
    merges += [[tail, head] for tail in tails for head in heads]
    vocabulary = {token: id for id, token in enumerate([*symbols, *map("".join, merges)])}
    content["model"] |= {"vocab": vocabulary, "merges": merges, "ignore_merges": False}
    return tokenizers.Tokenizer.from_str(json.dumps(content | {"added_tokens": []}))


def _symbols() -> list[str]:
    """The character by which a byte-level tokenizer writes each byte: itself where it can be seen,
    else one from U+0100 on, in order."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in seen else chr(next(others)) for byte in range(256)]
