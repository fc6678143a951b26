"""Whether an id stands for the same text everywhere: in all shards, and in the weights that a run
starts from. Only manifests tell, so nothing is said of shards without one."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

from light_llm.checkpoint.hub import starting_weights
from light_llm.checkpoint.reading import read_checkpoint
from light_llm.checkpoint.tokenizer import Found, find_tokenizer
from light_llm.errors import UserError
from light_llm.preprocess.listing import Listing, manifests
from light_llm.preprocess.manifest import TOKENIZER, tokenizer_fingerprint
from light_llm.tokenizer import Tokenizer, load_tokenizer


def is_written_with(listing: Listing, tokenizer: Tokenizer) -> bool:
    """Whether a manifest's shards were written with a tokenizer, as far as it tells.

    The folder that a tokenizer came from may hold other files too, as a model's does, and others
    save the same tokenizer in other words. So what counts is what it would save here, or else its
    ids, compared with those of the tokenizer beside the manifest.
    """
    known = listing.tokenizer.get("fingerprint")
    if known is None:
        return True
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        if tokenizer_fingerprint(Path(folder)) == known:
            return True
    own = _tokenizer_of(listing)
    return own is not None and _texts(own) == _texts(tokenizer)


def _tokenizer_of(listing: Listing) -> Tokenizer | None:
    """The one beside a manifest; None if it cannot be read from this machine's disk."""
    if not isinstance(listing.path, Path):
        return None
    try:
        return load_tokenizer(listing.path.parent / TOKENIZER, fetch=False)
    except UserError:
        return None


def _texts(tokenizer: Tokenizer) -> list[str]:
    """What each id stands for."""
    ids = range(tokenizer.vocab_size)
    return [tokenizer.decode([id], skip_special_tokens=False) for id in ids]


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
    named = [each for each in listings if each.tokenizer.get("fingerprint") is not None]
    for listing in named[1:]:
        if listing.tokenizer["fingerprint"] != named[0].tokenizer["fingerprint"]:
            tokenizer = _tokenizer_of(listing)
            if tokenizer is None or not is_written_with(named[0], tokenizer):
                return named[0], listing
    return None


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
    for listing in listings:
        if not is_written_with(listing, found.tokenizer):
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
