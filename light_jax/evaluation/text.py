"""How many bytes of text the tokens of an evaluation are, by the tokenizer that made them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from light_jax.data import TokenStream
from light_jax.data.meaning import Meaning
from light_jax.evaluation.plan import Plan
from light_llm.checkpoint.reading import read_checkpoint
from light_llm.checkpoint.tokenizer import beside, warn_of_change
from light_llm.errors import UserError
from light_llm.preprocess.listing import folder_of, manifests, tokenizer_beside
from light_llm.preprocess.manifest import Place
from light_llm.tokenizer import UNKNOWN_CHAR, CharTokenizer, Tokenizer, load_tokenizer

LONGEST = 2**16
"""Tokens that are decoded at once, where no document ends before."""
LONGEST_CHARACTER = 8
"""Tokens: a character has at most four bytes, and a token at least one."""


def size_of_text(plan: Plan, stream: TokenStream) -> int:
    """Bytes in UTF-8 of the text that all windows of a path predict.

    Raises:
        UserError: no tokenizer is known, the data was made with another one, or the tokens are no
            text of it.
    """
    tokenizer, name = find_tokenizer(plan, folder_of(stream.shards[0].path))
    meaning = Meaning(tokenizer)
    for listing in manifests(shard.path for shard in stream.shards):
        if meaning.is_that_of(listing) is False:
            raise UserError(
                f"{listing.path} names another tokenizer than {name}, so its ids stand for other "
                "text than the model was trained on, and the loss is of no meaning; make the "
                f"shards again with --tokenizer-path {name}"
            )
    unknown, count = _unknown_id(tokenizer), 0
    for ids_n in documents(predicted(stream), tokenizer):
        if ids_n.size and ids_n.max() >= tokenizer.vocab_size:
            raise UserError(f"the data has id {ids_n.max()}, which the tokenizer {name} lacks")
        if unknown is not None and (ids_n == unknown).any():
            raise UserError(f"the data holds text that the tokenizer {name} does not know")
        count += len(tokenizer.decode(ids_n.tolist()).encode("utf-8", "replace"))
    return count


def find_tokenizer(plan: Plan, shards: Place) -> tuple[Tokenizer, str]:
    """The tokenizer beside the checkpoint, else of the config, else beside the shards; its name.

    Raises:
        UserError: there is none that fits the model, with the reason of each.
    """
    checkpoint = read_checkpoint(plan.prefix)
    places = [beside(checkpoint), plan.cfg.tokenizer_path]
    reasons = []
    for place in (*places, tokenizer_beside(shards)):
        if not place:
            continue
        try:
            tokenizer = load_tokenizer(place, fetch=False)
        except UserError as error:
            reasons.append(str(error))
            continue
        if tokenizer.vocab_size <= plan.cfg.model.vocab_size:
            warn_of_change(checkpoint, Path(place))
            return tokenizer, str(place)
        reasons.append(f"{place} has {tokenizer.vocab_size} ids, more than the model")
    where = f"tokenizer_path is not set, and there is none beside {plan.prefix} or {shards}"
    raise UserError("; ".join(reasons) or where)


def predicted(stream: TokenStream) -> Iterator[np.ndarray]:
    """The tokens that the windows of epoch 0 predict, in order: all but the first and the tail."""
    stop = len(stream) * stream.seq_len + 1
    for place in range(len(stream.epoch(0).groups)):
        start, tokens = stream.read(0, place)
        if start >= stop:
            return
        yield tokens[max(0, 1 - start) : stop - start]


def documents(chunks: Iterable[np.ndarray], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The same tokens, cut where a document ends, else between two characters.

    A character that is incomplete at the end is left out.
    """
    rest = np.empty(0, np.int32)
    for chunk in chunks:
        rest = np.concatenate([rest, chunk])
        if tokenizer.eos_id is not None:
            *whole, rest = np.split(rest, np.flatnonzero(rest == tokenizer.eos_id) + 1)
            yield from whole
        while len(rest) > LONGEST:
            cut = _between_characters(rest[:LONGEST], tokenizer)
            yield rest[:cut]
            rest = rest[cut:]
    yield rest[: _between_characters(rest, tokenizer)]


def _between_characters(ids_n: np.ndarray, tokenizer: Tokenizer) -> int:
    """How many of the ids to take so that the last character is whole."""
    for cut in range(len(ids_n), max(0, len(ids_n) - LONGEST_CHARACTER), -1):
        end = ids_n[max(0, cut - 2 * LONGEST_CHARACTER) : cut].tolist()
        if not tokenizer.decode(end).endswith(UNKNOWN_CHAR):
            return cut
    return len(ids_n)


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id that stands for any text that the tokenizer does not know."""
    if isinstance(tokenizer, CharTokenizer):
        return 0
    backend = getattr(tokenizer, "backend", None)
    token = getattr(backend.model, "unk_token", None) if backend is not None else None
    id = backend.token_to_id(token) if backend is not None and token else None
    return None if id == tokenizer.eos_id else id
