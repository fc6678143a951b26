"""Wishes in tokenizer_config.json that a class of transformers fulfils by changing tokenizer.json.

Here tokenizer.json is taken as it is, so a wish that it does not fulfil itself is told.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from light_llm.errors import UserError
from light_llm.files import given
from light_llm.tokenizer.notes import note

if TYPE_CHECKING:
    import tokenizers

_KEYS = ("add_prefix_space", "do_lower_case", "add_bos_token", "add_eos_token")
_WORD = "hello"
_SPACES = ("\u0120", "\u2581", " ")
"""A space as byte-level tokenizers, SentencePiece and people write it."""


def note_unheard(
    backend: tokenizers.Tokenizer,
    config: dict[str, Any],
    bos: str | None,
    eos: str | None,
    source: Path,
) -> None:
    """Tell what `config`, the content of `source`, asks for and tokenizer.json does not do."""
    wishes = {key: wish for key in _KEYS if isinstance(wish := config.get(key), bool)}
    if not wishes:
        return
    try:
        with given.foreign(str):
            deeds = _deeds(backend, bos, eos)
            unheard = {key: wish for key, wish in wishes.items() if wish != deeds[key]}
            examples = {key: _example(backend, key) for key in unheard}
    except UserError:  # a tokenizer without a token for the unknown
        return
    for key, wish in unheard.items():
        does = "does not do" if wish else "does"
        note(
            f"{source}: {key} is {json.dumps(wish)}, and tokenizer.json, which alone counts, "
            f"{does} that: {examples[key]}"
        )


def _example(backend: tokenizers.Tokenizer, key: str) -> str:
    text = _WORD.upper() if key == "do_lower_case" else _WORD
    special = key in ("add_bos_token", "add_eos_token")
    return f"{text!r} gives {backend.encode(text, add_special_tokens=special).tokens}"


def _deeds(backend: tokenizers.Tokenizer, bos: str | None, eos: str | None) -> dict[str, bool]:
    """Of each key, whether tokenizer.json does it."""
    ends = backend.encode(_WORD, add_special_tokens=True).tokens or [""]
    return {
        "add_prefix_space": _pieces(backend, _WORD).startswith(_SPACES),
        "do_lower_case": _pieces(backend, _WORD.upper()).lstrip("".join(_SPACES)) == _WORD,
        "add_bos_token": bos is not None and ends[0] == bos,
        "add_eos_token": eos is not None and ends[-1] == eos,
    }


def _pieces(backend: tokenizers.Tokenizer, text: str) -> str:
    """The text as the model of the tokenizer gets it."""
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    if backend.pre_tokenizer is not None:
        text = "".join(piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text))
    return text


def puts_space_first(backend: tokenizers.Tokenizer) -> bool:
    """Whether the pre-tokenizer itself has a key `add_prefix_space` that is true."""
    if backend.pre_tokenizer is None:
        return False
    return json.loads(backend.pre_tokenizer.__getstate__()).get("add_prefix_space") is True
