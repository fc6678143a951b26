"""Tokens that files beside tokenizer.json add to its vocabulary, each with an id."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from light_llm.errors import UserError
from light_llm.tokenizer.notes import note

if TYPE_CHECKING:
    import tokenizers

IDS = 2**32
"""So many ids a tokenizer.json can have."""
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class Added(NamedTuple):
    """A token with its id, and how it is matched in a text."""

    id: int
    text: str
    flags: dict[str, bool]
    wins: bool
    """Whether these flags are believed before those that tokenizer.json has for it."""


def of_decoder(decoder: Any, source: Path) -> Iterator[Added]:
    """The tokens of `added_tokens_decoder` in tokenizer_config.json, the file `source`.

    Raises:
        UserError: it does not map ids to tokens.
    """
    where = f"{source}: added_tokens_decoder"
    if not isinstance(decoder, dict):
        raise UserError(f"{where} is {decoder!r}; it must map ids to tokens")
    for id, token in decoder.items():
        text = token.get("content") if isinstance(token, dict) else None
        is_id = id.isascii() and id.isdecimal() and len(id) < 11 and int(id) < IDS
        if not is_id or not isinstance(text, str):
            raise UserError(
                f"{where} has {id!r}: {token!r}; it must map an id, below 2^32, to a token with "
                "its `content`"
            )
        yield Added(int(id), text, flags_of(token), True)


def flags_of(token: dict[str, Any]) -> dict[str, bool]:
    return {flag: bool(token[flag]) for flag in _FLAGS if flag in token}


def flags_of_added(token: tokenizers.AddedToken) -> dict[str, bool]:
    return {flag: getattr(token, flag) for flag in _FLAGS}


def of_list(listed: dict[str, Any], special: Collection[str], source: Path) -> Iterator[Added]:
    """The tokens of added_tokens.json, the file `source`.

    Raises:
        UserError: an id is not a number of 32 bits from 0 on.
    """
    for text, id in listed.items():
        if type(id) is not int or not 0 <= id < IDS:
            raise UserError(
                f"{source}: the id of {text!r} is {id!r}; it must be a number from 0 to 2^32 - 1"
            )
        is_special = text in special
        yield Added(id, text, {"normalized": not is_special, "special": is_special}, False)


def add(backend: tokenizers.Tokenizer, tokens: Iterable[Added], source: Path) -> None:
    """Add tokens in the order of their ids, as transformers does; each gets its own id.

    Raises:
        UserError: tokenizer.json has another id for a token or another token for an id, or the ids
            do not follow its own.
    """
    import tokenizers

    known = backend.get_added_tokens_decoder()
    for token in sorted(tokens, key=lambda token: token.id):
        check_id(backend, token, source)
        wanted = tokenizers.AddedToken(token.text, **token.flags)
        there = known.get(token.id)
        if there is None or (token.wins and repr(there) != repr(wanted)):
            backend.add_tokens([wanted])
        got = backend.token_to_id(token.text)
        if got != token.id:
            raise _disagree(source, token, f"the next id after those of tokenizer.json is {got}")


def check_id(backend: tokenizers.Tokenizer, token: Added, source: Path) -> None:
    """
    Raises:
        UserError: tokenizer.json has another id for the token, or another token for the id.
    """
    there, holder = backend.token_to_id(token.text), backend.id_to_token(token.id)
    if there not in (token.id, None):
        raise _disagree(source, token, f"tokenizer.json gives it {there}")
    if holder not in (token.text, None):
        raise _disagree(source, token, f"in tokenizer.json that is {holder!r}")


def check_unread(backend: tokenizers.Tokenizer, tokens: Iterable[Added], source: Path) -> None:
    """Check tokens of a file that transformers does not read, since another one is believed.

    Raises:
        UserError: it gives a token another id.
    """
    for token in tokens:
        if backend.token_to_id(token.text) is not None:
            check_id(backend, token, source)
        else:
            note(
                f"{source} names {token.text!r}, and `added_tokens_decoder` of "
                "tokenizer_config.json, which is believed before it, does not: it is left out"
            )


def _disagree(source: Path, token: Added, how: str) -> UserError:
    return UserError(
        f"{source}: gives {token.text!r} the id {token.id}, and {how}: the files of this tokenizer "
        "disagree; take them from one place, or remove the wrong one"
    )
