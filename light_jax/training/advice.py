"""Checks that `llm-train --check` makes beyond those of every start: each warns, or raises."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from light_jax.checkpoint import store
from light_jax.checkpoint.place import continues_here, nearest_existing
from light_jax.config import TrainingConfig
from light_jax.data.footer import reread_footer
from light_jax.data.meaning import Meaning
from light_jax.data.mixed import Stream
from light_jax.data.rowgroup import decode, row_lengths
from light_jax.reporting.units import size
from light_jax.state import Tag
from light_jax.training.cautions import epochs
from light_jax.training.preflight import Inspected
from light_jax.training.step import state_shapes
from light_llm.errors import UserError
from light_llm.preprocess.listing import Listing, manifests
from light_llm.tokenizer import load_tokenizer

SAMPLES = 16
"""Row groups that are decoded, of all that there are: a large corpus takes minutes to read."""


def _listings(stream: Stream) -> list[Listing]:
    return manifests(shard.path for shard in stream.shards)


def _samples(stream: Stream) -> Iterator[tuple[str, int, int]]:
    """(path, checksum, row group) of up to SAMPLES row groups with tokens, evenly spread."""
    places = [
        (shard.path, shard.footer_crc32, int(group))
        for shard in stream.shards
        for group in np.flatnonzero(shard.tokens)
    ]
    chosen = min(SAMPLES, len(places))
    return (places[i * len(places) // chosen] for i in range(chosen))


def read_some(stream: Stream) -> None:
    """Decode row groups here and there: a footer can be whole where the pages are not.

    Raises:
        UserError: one is damaged, or holds an id that the model has no row for.
    """
    for path, crc32, group in _samples(stream):
        decode(reread_footer(path, crc32), group, stream.vocab_size)


def warn_of_ends(stream: Stream, name: str) -> None:
    """Warn of documents whose end nothing marks."""
    for listing in _listings(stream):
        end = listing.tokenizer.get("eos_id")
        if type(end) is not int:
            warnings.warn(
                f"{name}: the tokenizer of its shards ({listing.path}) has no end-of-text token, "
                "so nothing marks where a document ends, and a model never learns to stop; make "
                "the shards with a tokenizer that has one",
                stacklevel=2,
            )
        elif (ended := _ended(stream, listing, end)) is not None:
            warnings.warn(
                f"{name}: {ended} end in the end-of-text id {end} of their tokenizer "
                f"({listing.path}), so a model hardly learns to stop; make the shards with "
                "llm-preprocess, which adds it",
                stacklevel=2,
            )


def _ended(stream: Stream, listing: Listing, end: int) -> str | None:
    """How few of the documents that are looked at end in this id; None if it is most of them."""
    ending = documents = 0
    for path, crc32, group in _samples(stream):
        if listing.lists(path):
            footer = reread_footer(path, crc32)
            lengths = row_lengths(footer, group)
            last = np.cumsum(lengths)[lengths > 0] - 1
            ending += int((decode(footer, group, stream.vocab_size)[last] == end).sum())
            documents += len(last)
    return f"{ending} of {documents} documents" if 2 * ending < documents else None


def warn_of_tokenizer(cfg: TrainingConfig, train: Stream | None) -> None:
    """Warn of a tokenizer with which llm-run cannot read what the model writes."""
    if cfg.tokenizer_path is None:
        return
    try:
        tokenizer = load_tokenizer(cfg.tokenizer_path, fetch=False)
    except UserError as error:
        warnings.warn(
            f"{error} (tokenizer_path: training does without it, llm-run decodes with it)",
            stacklevel=2,
        )
        return
    named = f"tokenizer_path={cfg.tokenizer_path!r}"
    if tokenizer.vocab_size > cfg.model.vocab_size:
        warnings.warn(
            f"{named} has {tokenizer.vocab_size} ids, more than model.vocab_size="
            f"{cfg.model.vocab_size}, and llm-run would refuse it; name that of train_data",
            stacklevel=2,
        )
    meaning = Meaning(tokenizer)
    for listing in [] if train is None else _listings(train):
        if meaning.is_that_of(listing) is False:
            warnings.warn(
                f"{named} is not the tokenizer that train_data was written with, as "
                f"{listing.path} describes it; name the folder {listing.tokenizer.get('folder')!r} "
                "beside that file",
                stacklevel=2,
            )


def warn_of_saves(cfg: TrainingConfig) -> None:
    if cfg.save_every > cfg.num_steps:
        warnings.warn(
            f"save_every={cfg.save_every} is more than num_steps={cfg.num_steps}, so there is no "
            "checkpoint before the last step, and a crash loses everything; lower save_every",
            stacklevel=2,
        )


def warn_of_evaluations(cfg: TrainingConfig) -> None:
    if cfg.val_data is not None and cfg.eval_every > cfg.num_steps:
        warnings.warn(
            f"eval_every={cfg.eval_every} is more than num_steps={cfg.num_steps}, so only the last "
            "step is evaluated; lower eval_every",
            stacklevel=2,
        )


def bytes_of_tag(cfg: TrainingConfig) -> int:
    """What a checkpoint takes on disk: float32 weights, their average and the state of the
    optimizer."""
    state = state_shapes(cfg)
    weights = 4 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    if cfg.model.tie_embeddings:  # the file holds the head as a copy
        weights += 4 * cfg.model.vocab_size * cfg.model.d_model
    weights *= 1 if state.average is None else 2
    moments = jax.tree.leaves(state.opt_state)
    return weights + sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in moments)


def check_disk(cfg: TrainingConfig, tag: Tag | None) -> None:
    """Whether the disk of checkpoint_dir holds the checkpoints that this run will keep: the newest
    keep_last_n (or as many as it makes), `best`, and `final`, or the one that is being written.

    Raises:
        UserError: it does not.
    """
    directory = Path(cfg.checkpoint_dir)
    kept = min(cfg.keep_last_n, cfg.num_steps // cfg.save_every) + 2
    there = len(store.own_tags(directory)) if continues_here(directory, tag) else 0
    each = bytes_of_tag(cfg)
    needed, free = max(1, kept - there) * each, shutil.disk_usage(nearest_existing(directory)).free
    if needed > free:
        raise UserError(
            f"checkpoint_dir={cfg.checkpoint_dir!r}: its disk has {size(free)} free where "
            f"{max(1, kept - there)} checkpoints of {size(each)} take {size(needed)}; free some "
            f"space, lower keep_last_n={cfg.keep_last_n}, or use a folder on another disk"
        )


def notes(cfg: TrainingConfig, tag: Tag | None, found: Inspected) -> Iterator[tuple[str, str]]:
    """(key, what is worth knowing) where nothing is wrong."""
    if found.train is not None:
        for what, count, tokens in epochs(cfg, found.train):
            yield (
                "num_steps",
                f"num_steps={cfg.num_steps} of {cfg.tokens_per_step:,} tokens are "
                f"{count:,.2f} epochs of {what} ({tokens:,} tokens)",
            )
        if not _listings(found.train):
            yield (
                "train_data",
                "no manifest.json lists these shards, so their tokenizer is not known and not "
                "compared with the model; llm-preprocess writes one",
            )
    if "vocab_size" not in cfg.model.model_fields_set:
        yield (
            "model.vocab_size",
            f"left out, so it is {cfg.model.vocab_size}: that of the checkpoint, of the manifest "
            "beside train_data, or the default, whichever there is first",
        )
    attention = cfg.model.attention
    if attention.document_mask and "document_end" not in attention.model_fields_set:
        yield (
            "model.attention.document_end",
            f"left out, so it is {attention.document_end}: that of the checkpoint, of the manifest "
            "beside train_data, or of tokenizer_path, whichever there is first",
        )
    if cfg.tokenizer_path is None:
        yield "tokenizer_path", "not set, so llm-run will need --tokenizer PATH"
    if tag is None:
        return
    yield "resume", f"{tag.prefix} at step {tag.step} of {cfg.num_steps}"
    if tag.step >= cfg.num_steps:
        yield "num_steps", f"step {tag.step} is done, so nothing is left to do: raise num_steps"
    yield from (("resume", f"changed: {change}") for change in found.changes)
    if cfg.init_from is not None:
        yield "init_from", "ignored on resume"
