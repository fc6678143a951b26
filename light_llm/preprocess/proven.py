"""Which tokenizers gigatoken may stand for: their forms, and the trial that each one must pass."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from light_llm.errors import UserError
from light_llm.preprocess.agreement import SHOWN, first_difference
from light_llm.preprocess.encode import batches
from light_llm.preprocess.engine import FastTokenizer, Unfit
from light_llm.tokenizer import SubwordTokenizer

_END = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERNS = {
    "Llama 3": rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_END}",
    "Qwen 2": rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_END}",
    "Qwen 3.5": rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*{_END}",
    "GPT-4o": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_END}",
}
"""The patterns by which texts are split into words, GPT-2's aside, that were compared on every code
point."""
SPACES = [
    ("Prepend", {"prepend": "▁"}),
    ("Replace", {"pattern": {"String": " "}, "content": "▁"}),
]
"""The normalizers of SentencePiece's kind that were compared."""
_AROUND = 20  # characters


def check_form(tokenizer: SubwordTokenizer) -> None:
    """Check that a tokenizer is of a form that was compared on every code point.

    Raises:
        Unfit: it is not.
    """
    content = json.loads(tokenizer.backend.to_str())
    model, before = content["model"], content["pre_tokenizer"]
    if model["type"] != "BPE":
        raise Unfit(f"the model is {model['type']}, not BPE")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise Unfit("the model marks the parts of a word")
    normalizers = [_without_type(each) for each in _flat(content["normalizer"], "normalizers")]
    splitters = [_without_type(each) for each in _flat(before, "pretokenizers")]
    by_bytes = bool(splitters) and splitters[-1][0] == "ByteLevel"
    fits = _byte_level(splitters) if by_bytes else _sentence_piece(splitters)
    if not fits:
        raise Unfit(f"its pre_tokenizer was not compared: {_short(before)}")
    allowed = [("NFC", {})] if by_bytes else SPACES
    if any(step not in allowed for step in normalizers):
        raise Unfit(f"its normalizer was not compared: {_short(content['normalizer'])}")
    if by_bytes == model["byte_fallback"]:
        raise Unfit("of its pre_tokenizer and its model, not one alone makes bytes of characters")
    absent = [byte for byte in range(256) if f"<0x{byte:02X}>" not in model["vocab"]]
    if absent and not by_bytes:
        raise Unfit(f"its vocabulary has no token <0x{absent[0]:02X}>")


def _flat(part: Any, key: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, which may be a sequence."""
    if part is None:
        return []
    return part[key] if part["type"] == "Sequence" else [part]


def _without_type(step: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return step["type"], {key: value for key, value in step.items() if key != "type"}


def _byte_level(steps: Sequence[tuple[str, dict[str, Any]]]) -> bool:
    """Whether words are split by GPT-2's pattern, or by a known one alone."""
    last = steps[-1][1]
    if len(steps) == 1:
        return last["use_regex"]
    if len(steps) > 2 or last["use_regex"] or last["add_prefix_space"]:
        return False
    kind, split = steps[0]
    return (
        kind == "Split"
        and split["pattern"].get("Regex") in PATTERNS.values()
        and split["behavior"] == "Isolated"
        and not split["invert"]
    )


def _sentence_piece(steps: Sequence[tuple[str, dict[str, Any]]]) -> bool:
    """Whether no step asks what kind of character it sees, except a space."""
    kinds = [kind for kind, _ in steps]
    if kinds == ["Metaspace"]:
        return steps[0][1]["replacement"] == "▁"
    if kinds == ["Split"]:
        return steps[0][1]["pattern"].get("String") == " "
    return not kinds


def _short(part: Any) -> str:
    text = json.dumps(part, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:120]}…"


def check_ids(fast: FastTokenizer, texts: Iterable[str], special: bool) -> None:
    """Encode texts by both libraries.

    Args:
        special: whether the tokenizer's template adds its tokens.

    Raises:
        Unfit: a text has other ids, which the message names.
    """
    for batch in batches(texts):
        try:
            expected = fast.reference.encode_batch(batch, special)
        except UserError as error:
            raise Unfit(f"they cannot be compared: {error}") from None
        for text, ids, found in zip(
            batch, expected, fast.encode_all(batch, special).rows(), strict=True
        ):
            if (got := found.tolist()) != ids:
                raise Unfit(_difference(fast.reference, text, got, ids, special))


def _difference(
    reference: SubwordTokenizer, text: str, got: list[int], ids: list[int], special: bool
) -> str:
    at, place = first_difference(reference, special, text, got, ids)
    around = text[max(0, place - _AROUND) : place + _AROUND]
    return (
        f"its ids differ: in {around!r} it gives {got[at : at + SHOWN]}, and tokenizers "
        f"{ids[at : at + SHOWN]}"
    )
