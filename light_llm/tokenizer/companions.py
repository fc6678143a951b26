"""The files beside tokenizer.json: what they add to it, and the files of the copy that we write.

transformers reads them in this order. Of special tokens, special_tokens_map.json is believed before
tokenizer_config.json. Where that lists `added_tokens_decoder`, it is believed before all others,
and added_tokens.json is not read.

The copy is one that transformers reads to the ids of tokenizer.json: all tokens are in its
tokenizer.json, and its tokenizer_config.json names the class that takes this file as it is, and
nothing that would change it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from light_llm.errors import UserError
from light_llm.files import given
from light_llm.tokenizer import added
from light_llm.tokenizer.hub import check_link
from light_llm.tokenizer.kinds import END_OF_TEXT, config_text
from light_llm.tokenizer.notes import note
from light_llm.tokenizer.unheard import note_unheard, puts_space_first

if TYPE_CHECKING:
    import tokenizers

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
TEMPLATE = "chat_template.jinja"
NAMES = (CONFIG, SPECIAL, ADDED, TEMPLATE)
IGNORED = (
    "auto_map",
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "tokenizer_file",
    "fix_mistral_regex",
    "backend",
)
"""Keys of tokenizer_config.json that would make transformers change tokenizer.json as it loads it,
or run code of the folder."""
_EXTRA = ("additional_special_tokens", "extra_special_tokens")
_ENDS = ("bos_token", "eos_token")
_ROLES = (*_ENDS, "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
# End and begin marks, tried in this order where no file says which.
_USUAL = (
    (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "[EOS]"),
    ("<s>", "<|begin_of_text|>", "<bos>", "[BOS]"),
)


class Mark(NamedTuple):
    """A special token, and how it is matched in a text."""

    text: str
    flags: dict[str, bool]


class Companions(NamedTuple):
    """What the files beside a tokenizer.json say, and the texts of the copy's files by name."""

    eos: str | None
    bos: str | None
    splits_special: bool
    texts: dict[str, str]


def apply_companions(backend: tokenizers.Tokenizer, folder: Path) -> Companions:
    """Add the tokens that the files in `folder` name, with the ids that they give, to `backend`.

    Raises:
        UserError: a file is broken, or gives a token another id than tokenizer.json does.
    """
    texts = {name: text for name in NAMES if (text := _text(folder, name)) is not None}
    config, special, listed = (_mapping(texts, name, folder) for name in (CONFIG, SPECIAL, ADDED))
    decoder = config.get("added_tokens_decoder")
    said = config | special if decoder is None else special | config
    marks = dict(_marks(said, folder))
    extra = list(_extra(said, folder))
    named = [*(mark for mark in marks.values() if mark is not None), *extra]
    beside = added.of_list(listed, {mark.text for mark in named}, folder / ADDED)
    if decoder is None:
        added.add(backend, beside, folder / ADDED)
    else:
        added.add(backend, added.of_decoder(decoder, folder / CONFIG), folder / CONFIG)
        added.check_unread(backend, beside, folder / ADDED)
    _make_special(backend, named)
    if not any(key in said for key in _ENDS):
        marks |= _guessed(backend, folder)
    eos, bos = (mark and mark.text for mark in map(marks.get, ("eos_token", "bos_token")))
    note_unheard(backend, config, bos, eos, folder / CONFIG)
    copy = _copy(backend, said if CONFIG in texts else json.loads(config_text()) | said, marks)
    kept = {name: texts[name] for name in (CONFIG, TEMPLATE) if name in texts}
    if copy != config:
        kept[CONFIG] = json.dumps(copy, indent=2, ensure_ascii=False) + "\n"
    _note_left_out(backend, marks, extra, folder)
    return Companions(eos, bos, bool(said.get("split_special_tokens")), kept)


def _text(folder: Path, name: str) -> str | None:
    if not (folder / name).is_symlink() and not (folder / name).exists():
        return None
    check_link(folder / name, folder)
    # without a byte order mark: the text goes into the copy, where others may not expect one
    return given.read_text(folder / name, what="the tokenizer's file").removeprefix("\ufeff")


def _mapping(texts: Mapping[str, str], name: str, folder: Path) -> dict[str, Any]:
    content = given.parse_json(texts.get(name, "{}"), f"{folder / name}: is not a JSON object")
    if not isinstance(content, dict):
        raise UserError(f"{folder / name}: is not a JSON object; it must map names to values")
    return content


def _marks(said: dict[str, Any], folder: Path) -> Iterator[tuple[str, Mark | None]]:
    """The special tokens by their names, such as eos_token."""
    for key, token in said.items():
        is_other = key.endswith("_token") and isinstance(_text_of(token), str)  # as image_token
        if key in _ROLES or is_other:
            yield key, _mark(token, key, folder)


def _extra(said: dict[str, Any], folder: Path) -> Iterator[Mark]:
    """The special tokens without a name."""
    for key in _EXTRA:
        tokens = said.get(key) or []
        if not isinstance(tokens, list | dict):
            raise UserError(f"{folder}: {key} is {tokens!r}; it must be a list of tokens")
        for _, token in _items(tokens):
            mark = _mark(token, key, folder)
            if mark is not None:
                yield mark


def _items(tokens: list[Any] | dict[str, Any]) -> Iterable[tuple[Any, Any]]:
    return tokens.items() if isinstance(tokens, dict) else enumerate(tokens)


def _text_of(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _mark(token: Any, key: str, folder: Path) -> Mark | None:
    """A special token as configs spell it: "</s>", or {"content": "</s>", …}, or null."""
    if token is None:
        return None
    content = _text_of(token)
    if not isinstance(content, str):
        raise UserError(
            f"{folder / CONFIG} or {SPECIAL}: {key} is {token!r}; it must be a token's text, not "
            "its id, or null"
        )
    return Mark(content, added.flags_of(token) if isinstance(token, dict) else {})


def _make_special(backend: tokenizers.Tokenizer, named: Iterable[Mark]) -> None:
    """Let tokens of the vocabulary that a file names be special ones, as transformers does: a text
    that spells one out gets its id, and `decode` can leave it out."""
    import tokenizers

    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    for text, flags in named:
        there = known.get(text)
        if backend.token_to_id(text) is None or (there is not None and there.special):
            continue
        if there is not None:
            flags = added.flags_of_added(there)
        backend.add_special_tokens([tokenizers.AddedToken(text, **(flags | {"special": True}))])


def _guessed(backend: tokenizers.Tokenizer, folder: Path) -> dict[str, Mark | None]:
    special = [token.content for token in backend.get_added_tokens_decoder().values()]
    eos, bos = (next((Mark(t, {}) for t in usual if t in special), None) for usual in _USUAL)
    if eos is not None:
        note(
            f"{folder}: no file says which token ends a document; {eos.text!r} is taken, since it "
            "is one of the special tokens and has a usual name"
        )
    return {"eos_token": eos, "bos_token": bos}


def _copy(
    backend: tokenizers.Tokenizer, said: dict[str, Any], marks: dict[str, Mark | None]
) -> dict[str, Any]:
    """tokenizer_config.json of the copy. A named token that has no id would get a new one."""

    def known(text: str | None) -> str | None:
        return text if text is not None and backend.token_to_id(text) is not None else None

    copy = {key: value for key, value in said.items() if key not in IGNORED}
    copy.pop("added_tokens_decoder", None)  # tokenizer.json has them
    copy["tokenizer_class"] = json.loads(config_text())["tokenizer_class"]
    for key, mark in marks.items():
        copy[key] = known(mark and mark.text)
        if mark is not None and copy[key] is None and key not in _ENDS:
            del copy[key]
    listed: list[str] = []
    for key in _EXTRA:
        tokens = copy.pop(key, None) or []
        texts = {name: _text_of(token) for name, token in _items(tokens)}
        kept = {name: text for name, text in texts.items() if known(text) is not None}
        if isinstance(tokens, list):
            listed += kept.values()
        elif kept:
            copy[key] = kept
    if listed:  # versions 4 of transformers know no list by the other name
        copy["additional_special_tokens"] = list(dict.fromkeys(listed))
    if puts_space_first(backend):  # transformers 4 takes its absence as false, and believes it
        copy["add_prefix_space"] = True
    return copy


def _note_left_out(
    backend: tokenizers.Tokenizer, marks: dict[str, Mark | None], extra: list[Mark], folder: Path
) -> None:
    others = [mark for key, mark in marks.items() if mark is not None and key not in _ENDS]
    texts = dict.fromkeys(mark.text for mark in (*others, *extra))
    absent = [repr(text) for text in texts if backend.token_to_id(text) is None]
    if absent:
        note(
            f"{folder}: special tokens that no file gives an id are left out: "
            f"{', '.join(absent[:8])}{', …' if len(absent) > 8 else ''}"
        )
