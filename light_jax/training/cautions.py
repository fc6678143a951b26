"""What every start warns of: settings and data that train, and hardly as they were meant."""

from __future__ import annotations

import warnings

from light_jax.config import TrainingConfig
from light_jax.data.mixed import MixedStream, Stream
from light_llm.preprocess.listing import manifests

MANY_EPOCHS = 20
PADDING = 128
"""A vocabulary that is rounded up to a multiple of this is no mistake: hardware likes it."""


def warn_of_warmup(cfg: TrainingConfig) -> None:
    """Warn of a learning rate that never gets to its height."""
    warmup = cfg.scheduler.warmup_steps
    if warmup > cfg.num_steps:
        warnings.warn(
            f"scheduler.warmup_steps={warmup} is more than num_steps={cfg.num_steps}, so the "
            f"learning rate never reaches optimizer.lr={cfg.optimizer.lr:g}: lower it to about "
            f"{max(1, cfg.num_steps // 10)}, or raise num_steps",
            stacklevel=2,
        )


def warn_of_positions(cfg: TrainingConfig) -> None:
    """Warn of learned positions that no window reaches."""
    trained, rows = cfg.seq_len, cfg.model.max_seq_len
    if cfg.model.positional.encoding == "learned" and trained < rows:
        warnings.warn(
            f"seq_len={trained} trains only positions 0 to {trained - 1}; the other "
            f"{rows - trained} learned ones get no gradient and stay noise: raise seq_len, or "
            f"lower model.max_seq_len={rows} to it",
            stacklevel=2,
        )


def warn_of_vocabulary(cfg: TrainingConfig, train: Stream) -> None:
    """Warn of rows of the embedding that no token of the tokenizer uses.

    The weights of init_from have as many rows as they have.
    """
    if cfg.init_from is not None:
        return
    size = max((each.vocab_size for each in manifests(paths(train))), default=None)
    given = cfg.model.vocab_size
    padded = given % PADDING == 0 and size is not None and given - size < PADDING
    if size is not None and size < given and not padded:
        warnings.warn(
            f"model.vocab_size={given} is above the {size} ids of the tokenizer of train_data; "
            f"the other {given - size} rows of the embedding are never trained: set it to {size}, "
            f"or leave it out; {-(-size // PADDING) * PADDING} is the next multiple of {PADDING}",
            stacklevel=2,
        )


def warn_of_ends(cfg: TrainingConfig, train: Stream) -> None:
    """Warn of an id at which documents are told apart that ends none of them."""
    attention = cfg.model.attention
    if not attention.document_mask or attention.document_end is None:
        return
    ends = {each.tokenizer.get("eos_id") for each in manifests(paths(train))}
    if ends and attention.document_end not in ends:
        warnings.warn(
            f"model.attention.document_end={attention.document_end} is not the end-of-text id of "
            f"the tokenizer of train_data, {', '.join(sorted(map(str, ends)))}; leave it out to "
            "take that",
            stacklevel=2,
        )


def warn_of_epochs(cfg: TrainingConfig, train: Stream) -> None:
    """Warn of data that is repeated so often that a model learns it by heart."""
    for what, count, tokens in epochs(cfg, train):
        if count <= MANY_EPOCHS:
            continue
        most = int(cfg.num_steps * MANY_EPOCHS / count)
        warnings.warn(
            f"num_steps={cfg.num_steps} is {count:,.1f} epochs of {what} ({tokens:,} "
            f"tokens); after {MANY_EPOCHS} of them little is learned but the text itself: add "
            f"data, or lower num_steps{f' to {most}' if most else ''}",
            stacklevel=2,
        )


def epochs(cfg: TrainingConfig, train: Stream) -> list[tuple[str, float, int]]:
    """(what, how often all steps together see it, its tokens) of the training data, or of each of
    its sources."""
    if not isinstance(train, MixedStream):
        return [("train_data", cfg.num_windows / len(train), train.num_tokens)]
    taken = zip(train.taken(cfg.num_windows), train.streams, strict=True)
    return [
        (f"train_data's source {source.name}", source.epochs, stream.num_tokens)
        for source, stream in taken
    ]


def paths(stream: Stream) -> list[str]:
    return [shard.path for shard in stream.shards]
