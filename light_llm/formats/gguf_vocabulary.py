"""A byte-level BPE as llama.cpp keeps it in a GGUF file: tokens, merges, and a name of its pattern.

llama.cpp does not read a tokenizer's pattern from the file: it has a list of patterns, each with a
name. So a tokenizer with another pattern would split words elsewhere, and is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from light_llm.errors import UserError
from light_llm.tokenizer import SubwordTokenizer, Tokenizer

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Types of a token; the numbers are GGUF's."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _WORDS + r"\p{N}" + _REST: "qwen2",
}
"""The pattern of a Split in tokenizer.json -> llama.cpp's name for it; GPT-2's is ByteLevel's."""


class Vocabulary(NamedTuple):
    """The keys `tokenizer.ggml.*`."""

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    bos_id: int
    eos_id: int
    add_bos: bool


def vocabulary(tokenizer: Tokenizer, size: int, source: object) -> Vocabulary:
    """The tokenizer for a model of `size` ids; ids that it does not use get names of their own.

    Args:
        source: the tokenizer's name in messages.

    Raises:
        UserError: llama.cpp would give other ids for some text, or end texts elsewhere; or the
            tokenizer has more ids than `size`.
    """
    if not isinstance(tokenizer, SubwordTokenizer):
        raise _refusal(source, [f"it is a {type(tokenizer).__name__}, not a byte-level BPE"])
    if tokenizer.vocab_size > size:
        raise UserError(
            f"{source}: the tokenizer has {tokenizer.vocab_size} tokens, more than the model's "
            f"vocab_size={size}; name the tokenizer of its training data with --tokenizer"
        )
    content = json.loads(tokenizer.backend.to_str())
    pre = _pattern(content.get("pre_tokenizer"))
    problems = list(_problems(content, pre))
    if tokenizer.eos_id is None:
        problems.append("no token ends a document, and llama.cpp would take id 11 for the end")
    if problems or pre is None or tokenizer.eos_id is None:
        raise _refusal(source, problems)
    tokens, types = _tokens(tokenizer, size)
    eos_id, bos_id = tokenizer.eos_id, tokenizer.bos_id
    return Vocabulary(
        pre,
        tokens,
        types,
        [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]],
        # one must be named, or llama.cpp takes id 11; GPT-2 begins with the end mark too
        bos_id=eos_id if bos_id is None else bos_id,
        eos_id=eos_id,
        add_bos=bos_id is not None and bos_id != eos_id,
    )


def _refusal(source: object, problems: list[str]) -> UserError:
    return UserError(
        f"{source}: llama.cpp cannot reproduce this tokenizer: {'; '.join(problems)}; leave it out "
        "with --no-tokenizer, and give llama.cpp ids instead of text"
    )


def _pattern(pre_tokenizer: Any) -> str | None:
    """llama.cpp's name for the way that a text is split before the merges, if it has one."""
    match list(_flat(pre_tokenizer)):
        case [{"type": "ByteLevel", "add_prefix_space": False} as bytes_]:
            return "gpt-2" if bytes_.get("use_regex", True) else None
        case [
            {
                "type": "Split",
                "pattern": {"Regex": str(regex)},
                "behavior": "Isolated",
                "invert": False,
            },
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return SPLITS.get(regex)
    return None


def _flat(pre_tokenizer: Any) -> Iterator[Any]:
    if isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "Sequence":
        for each in pre_tokenizer.get("pretokenizers", ()):
            yield from _flat(each)
    else:
        yield pre_tokenizer


def _problems(content: Mapping[str, Any], pre: str | None) -> Iterator[str]:
    model = content["model"]
    if model.get("type") != "BPE":
        yield f"its model is {model.get('type')}, not BPE"
        return
    if pre is None:
        yield (
            f"its pre_tokenizer is {_short(content.get('pre_tokenizer'))}, which is neither "
            "GPT-2's nor Llama 3's nor Qwen 2's"
        )
    # llama.cpp passes over the NFC of Qwen 2, which few texts are changed by
    if content.get("normalizer") not in (None, *[{"type": "NFC"}] * (pre == "qwen2")):
        yield f"its normalizer is {_short(content['normalizer'])}"
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(name):
            yield f"{name} is {model[name]!r}"
    if pre is not None and bool(model.get("ignore_merges")) != (pre == "llama-bpe"):
        yield f"ignore_merges is {model.get('ignore_merges')!r}, unlike {pre}'s"
    if not model["merges"]:
        yield "it has no merges"
    missing = set(_byte_letters()) - model["vocab"].keys()
    if pre is not None and missing:
        yield f"{len(missing)} of the 256 bytes have no token"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _byte_letters() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return ByteLevel.alphabet()


def _tokens(tokenizer: SubwordTokenizer, size: int) -> tuple[list[str], list[int]]:
    """The text and the type of each id below `size`."""
    ids = tokenizer.backend.get_vocab(with_added_tokens=True)
    texts = {id: text for text, id in ids.items()}
    added = tokenizer.backend.get_added_tokens_decoder()
    tokens, types = [], []
    for id in range(size):
        if id in added:
            tokens.append(added[id].content)
            types.append(CONTROL if added[id].special else USER_DEFINED)
        elif id in texts:
            tokens.append(texts[id])
            types.append(NORMAL)
        else:
            name = f"[PAD{id}]"
            while name in ids:
                name = f"[{name}]"
            tokens.append(name)
            types.append(UNUSED)
    return tokens, types
