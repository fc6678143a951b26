"""Whether transformers reads the tokenizer beside the shards to the ids that they will hold."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from light_llm.errors import UserError
from light_llm.files import given
from light_llm.lazy import importing
from light_llm.preprocess.corpus import Corpus
from light_llm.preprocess.notices import notice
from light_llm.tokenizer import SubwordTokenizer, Tokenizer
from light_llm.tokenizer.hub import offline

CHARACTERS = 100_000
PIECE = 10_000  # of one text
SHOWN = 8  # ids, from the first that differs
BEFORE, BEHIND = 20, 60  # characters that are shown around it


def check_agreement(
    tokenizer: Tokenizer, folder: Path, corpora: Sequence[Corpus], special: bool
) -> None:
    """Compare `tokenizer` with AutoTokenizer, which reads its copy in `folder`, on some texts.

    A note is printed where AutoTokenizer cannot load the copy. Nothing is compared where the
    tokenizer is not one of `tokenizers`.

    Args:
        special: whether the tokenizer's template adds its tokens.

    Raises:
        UserError: a text has other ids there.
    """
    if not isinstance(tokenizer, SubwordTokenizer):
        return
    try:
        with given.foreign(lambda reason: f"transformers cannot load this tokenizer: {reason}"):
            theirs = _load(folder)
    except UserError as error:
        notice(str(error))
        return
    for text in _sample(corpora):
        try:
            ids = tokenizer.encode(text, special)
        except UserError:
            continue  # the run names the document
        other = theirs.encode(text, add_special_tokens=special, verbose=False)
        if ids != other:
            raise _differs(tokenizer, special, text, ids, other)


def _load(folder: Path) -> Any:
    """AutoTokenizer of a folder; without requests, and without advice on stderr."""
    with importing():
        from transformers import AutoTokenizer
        from transformers.utils import logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with offline():
            return AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    finally:
        logging.set_verbosity(before)


def _sample(corpora: Sequence[Corpus]) -> Iterator[str]:
    each = CHARACTERS // len(corpora)
    for corpus in corpora:
        yield from beginnings(each, (document.text for document in corpus.sample(each)))


def beginnings(characters: int, texts: Iterable[str]) -> Iterator[str]:
    """The beginnings of texts, until they have `characters` together."""
    for text in texts:
        yield text[:PIECE]
        characters -= len(text[:PIECE])
        if characters <= 0:
            return


def first_difference(
    tokenizer: SubwordTokenizer, special: bool, text: str, ours: list[int], theirs: list[int]
) -> tuple[int, int]:
    """The number of the first id that differs, and its place in the text.

    Args:
        tokenizer: whose ids one of the two are.
    """
    pairs = itertools.zip_longest(ours, theirs)
    at = next(number for number, (one, other) in enumerate(pairs) if one != other)
    offsets = tokenizer.backend.encode(text, add_special_tokens=special).offsets
    return at, offsets[at][0] if at < len(offsets) else len(text)


def _differs(
    tokenizer: SubwordTokenizer, special: bool, text: str, ours: list[int], theirs: list[int]
) -> UserError:
    at, place = first_difference(tokenizer, special, text, ours, theirs)
    begin, end = max(0, place - BEFORE), place + BEHIND
    shown = f"{'…' if begin else ''}{text[begin:end]!r}{'…' if end < len(text) else ''}"
    return UserError(
        f"tokenizer_path: transformers' AutoTokenizer reads this tokenizer otherwise, so shards "
        f"would hold other ids than a model gets there: for {shown}, from token {at} on, "
        f"{ours[at : at + SHOWN]} here and {theirs[at : at + SHOWN]} there; take another "
        "tokenizer, or leave out of its tokenizer_config.json what changes it"
    )
