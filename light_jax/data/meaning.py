"""Whether an id stands for the same text everywhere: in all shards, and in the weights that a run
starts from. Only manifests tell, so nothing is said of shards without one."""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

from light_llm.checkpoint.hub import starting_weights
from light_llm.checkpoint.reading import read_checkpoint
from light_llm.checkpoint.tokenizer import Found, find_tokenizer
from light_llm.errors import UserError
from light_llm.files import urls
from light_llm.preprocess.listing import Listing, manifests
from light_llm.preprocess.manifest import TOKENIZER, tokenizer_fingerprint
from light_llm.tokenizer import Tokenizer, load_tokenizer


class Meaning:
    """What the ids of a tokenizer stand for, compared with what manifests say of theirs.

    The folder that a tokenizer came from may hold other files too, as a model's does, and others
    save the same tokenizer in other words. So what counts is what it would save here, or else its
    ids, compared with those of the tokenizer beside the manifest.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._of: dict[str, bool | None] = {}

    def is_that_of(self, listing: Listing) -> bool | None:
        """Whether a manifest's shards were written with this tokenizer; None where that is not
        known, since the manifest does not say or its tokenizer is not beside it."""
        known = listing.tokenizer.get("fingerprint")
        if not isinstance(known, str):
            return None
        if known not in self._of:
            self._of[known] = known == self._fingerprint or self._has_the_ids_of(listing)
        return self._of[known]

    @functools.cached_property
    def _fingerprint(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            self._tokenizer.save(folder)
            return tokenizer_fingerprint(Path(folder))

    def _has_the_ids_of(self, listing: Listing) -> bool | None:
        other, own = _tokenizer_of(listing), self._tokenizer
        if other is None:
            return None
        return other.vocab_size == own.vocab_size and all(
            other.decode([id], skip_special_tokens=False)
            == own.decode([id], skip_special_tokens=False)
            for id in range(own.vocab_size)
        )


def _tokenizer_of(listing: Listing) -> Tokenizer | None:
    """The one beside a manifest; None if there is none that can be read."""
    try:
        if isinstance(listing.path, Path):
            return load_tokenizer(listing.path.parent / TOKENIZER, fetch=False)
        from light_llm.files.fetched import copy_of_folder

        copy = copy_of_folder(urls.child(urls.parent(listing.path), TOKENIZER))
        return None if copy is None else load_tokenizer(copy, fetch=False)
    except UserError:
        return None


def warn_of_tokenizers(shards: Iterable[str]) -> None:
    """Warn of shards that were written with different tokenizers."""
    different = _different(manifests(shards))
    if different is not None:
        first, second = different
        warnings.warn(
            f"{first.path} and {second.path} name different tokenizers, so the same id stands for "
            "other text in the shards of the one than in those of the other; make those of one "
            "again with the other's tokenizer (llm-preprocess --tokenizer-path)",
            stacklevel=2,
        )


def _different(listings: list[Listing]) -> tuple[Listing, Listing] | None:
    """Two that differ, if any do. A tokenizer is loaded only where digests differ."""
    named = {each.tokenizer.get("fingerprint"): each for each in reversed(listings)}
    named.pop(None, None)
    if len(named) < 2:
        return None
    first, *others = reversed(named.values())
    tokenizer = _tokenizer_of(first)
    if tokenizer is None:
        return None
    meaning = Meaning(tokenizer)
    return next(((first, each) for each in others if meaning.is_that_of(each) is False), None)


def warn_of_weights(prefix: str, shards: Iterable[str]) -> None:
    """Warn of weights whose tokenizer did not write the shards: for them the text is noise.

    Args:
        prefix: what `init_from` names. If no tokenizer belongs to it, or none that can be loaded,
            nothing is said.
    """
    listings = manifests(shards)
    found = _tokenizer_with(prefix) if listings else None
    if found is None:
        return
    meaning = Meaning(found.tokenizer)
    for listing in listings:
        if meaning.is_that_of(listing) is False:
            warnings.warn(
                f"init_from={prefix!r} has another tokenizer ({found.path}) than {listing.path}, "
                "so its weights read other text from these shards than was written; make them "
                f"again with llm-preprocess --tokenizer-path {found.path}",
                stacklevel=2,
            )


def _tokenizer_with(prefix: str) -> Found | None:
    try:
        weights = starting_weights(prefix, fetch=False).weights
        return find_tokenizer(read_checkpoint(weights if weights.is_dir() else prefix))
    except UserError:
        return None
