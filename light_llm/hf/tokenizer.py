"""The tokenizer of a checkpoint as AutoTokenizer loads it, with the ids of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from light_llm.errors import UserError
from light_llm.files import given
from light_llm.tokenizer.companions import IGNORED
from light_llm.tokenizer.kinds import (
    END_OF_TEXT,
    UNKNOWN_CHAR,
    CharTokenizer,
    PythonTokenizer,
    SubwordTokenizer,
    Tokenizer,
    config_text,
)

CONFIG, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
MARKS = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
SAMPLES = (
    "",
    "The quick brown fox jumps over the lazy dog.",
    "  two  spaces,\n\n\ta tab\r\nand the end ",
    "Grüße, 世界! 👩‍👩‍👧 e\u0301 \u00a0\u200b\ufffd",
    "def f(x):\n    return x ** 2  # 3.14 1234567890 $%&",
    "<|endoftext|> </s><s> [CLS] <unk> <pad>",
)
QWENS_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
OTHER = "name another with --tokenizer PATH, or leave it out with --no-tokenizer"
DRAWN, LENGTH = 8, 64  # texts from random ids, and how many ids each


class SpecialIds(NamedTuple):
    """The ids that a config of transformers names; None where the tokenizer has none."""

    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None


class Checked(NamedTuple):
    """What the comparison of two tokenizers gives: the number of texts, and the special ids."""

    texts: int
    ids: SpecialIds


def write_tokenizer(tokenizer: Tokenizer, folder: Path, max_seq_len: int) -> None:
    """Write the files of a tokenizer into `folder`.

    tokenizer.json stays as it is, and the class named beside it is the one that takes it so.

    Raises:
        UserError: a character tokenizer that knows U+FFFD, or half a surrogate pair.
    """
    if isinstance(tokenizer, PythonTokenizer):
        tokenizer.save(folder)
        return
    if isinstance(tokenizer, CharTokenizer):
        tokenizer = of_characters(tokenizer)
    assert isinstance(tokenizer, SubwordTokenizer)
    tokenizer.save(folder)
    given_config = _read(folder / CONFIG)
    given_special = _read(folder / SPECIAL)
    state = json.loads(tokenizer.backend.to_str())
    config = {key: value for key, value in given_config.items() if key not in IGNORED}
    config |= json.loads(config_text(model_max_length=max_seq_len))
    if "add_prefix_space" in (state["pre_tokenizer"] or {}):
        config["add_prefix_space"] = state["pre_tokenizer"]["add_prefix_space"]
    special = given_special | {key: config[key] for key in MARKS if config.get(key)}
    for key in MARKS:  # transformers would give one without an id a new id
        if _id(tokenizer, special.get(key)) is None:
            special.pop(key, None)
            config.pop(key, None)
    _write(folder / CONFIG, config)
    _write(folder / SPECIAL, special)


def is_qwens(tokenizer: Tokenizer | None) -> bool:
    """Whether a folder of type qwen2 may hold this tokenizer. Versions 5 of transformers take the
    vocabulary alone from its tokenizer.json, and cut texts by Qwen's rules.
    """
    if not isinstance(tokenizer, SubwordTokenizer):
        return tokenizer is None
    state = json.loads(tokenizer.backend.to_str())
    steps = (state["pre_tokenizer"] or {}).get("pretokenizers") or [{}]
    is_cut_so = steps[0].get("pattern") == {"Regex": QWENS_CUT}
    return is_cut_so and state["normalizer"] == {"type": "NFC"}


def of_characters(tokenizer: CharTokenizer) -> SubwordTokenizer:
    """The same ids and texts by a `tokenizers.Tokenizer`.

    Raises:
        UserError: it knows U+FFFD, which stands for any unknown character too, or half a surrogate
            pair.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    if UNKNOWN_CHAR in tokenizer.characters:
        raise UserError(
            "the character tokenizer knows U+FFFD as a character of its own, which cannot be told "
            "there from the mark of an unknown one"
        )
    vocab = {character: id for id, character in enumerate(tokenizer.characters, start=2)}
    vocab |= {UNKNOWN_CHAR: 0, END_OF_TEXT: 1}
    with given.foreign(lambda reason: f"a character of the tokenizer is not Unicode: {reason}"):
        backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN_CHAR))
        each = tokenizers.Regex(r"[\s\S]")
        backend.pre_tokenizer = pre_tokenizers.Split(each, behavior="isolated")
        backend.decoder = decoders.Fuse()
        backend.add_special_tokens([END_OF_TEXT])
    backend.encode_special_tokens = True
    config = config_text(eos_token=END_OF_TEXT, split_special_tokens=True)
    return SubwordTokenizer(backend, END_OF_TEXT, companions={CONFIG: config})


def check_tokenizer(tokenizer: Tokenizer, folder: Path) -> Checked:
    """Compare AutoTokenizer, loaded from `folder`, with our tokenizer on some texts.

    Raises:
        UserError: other ids, another text, another number of ids, or it cannot be loaded there.
    """
    from transformers import AutoTokenizer

    with given.foreign(
        lambda reason: f"AutoTokenizer cannot load the tokenizer: {reason}; {OTHER}"
    ):
        theirs = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    size = 1 + max(theirs.get_vocab().values())
    if size != tokenizer.vocab_size:
        raise _differs(f"has {size} ids there and {tokenizer.vocab_size} here")
    rng = np.random.default_rng(0)
    drawn = rng.integers(tokenizer.vocab_size, size=(DRAWN, LENGTH)).tolist()
    for ids in drawn:
        for skip in (True, False):
            text = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            if text != tokenizer.decode(ids, skip_special_tokens=skip):
                raise _differs(f"gives another text there for the ids {ids}")
    texts = [*SAMPLES, *(tokenizer.decode(ids) for ids in drawn)]
    for text in texts:
        for special in (False, True):
            ids = theirs.encode(text, add_special_tokens=special)
            if ids != tokenizer.encode(text, add_special_tokens=special):
                raise _differs(f"gives other ids there for {text[:80]!r}")
    ends = (theirs.bos_token_id, theirs.eos_token_id)
    if ends != (tokenizer.bos_id, tokenizer.eos_id):
        raise _differs(f"begins and ends a document with other ids there: {ends}")
    return Checked(len(texts), SpecialIds(*ends, theirs.pad_token_id))


def _differs(how: str) -> UserError:
    return UserError(f"the tokenizer {how}, loaded by AutoTokenizer; {OTHER}")


def _id(tokenizer: SubwordTokenizer, token: Any) -> int | None:
    content = token.get("content") if isinstance(token, dict) else token
    return tokenizer.backend.token_to_id(content) if isinstance(content, str) else None


def _read(path: Path) -> dict[str, Any]:
    return given.read_json(path) if path.exists() else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
