"""What is to be evaluated, checked before a framework is imported or a weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from light_jax.config import TrainingConfig, config_of
from light_jax.data import TokenStream
from light_jax.data.mixed import Stream, stream_of
from light_jax.sources import paths_of
from light_llm.checkpoint.reading import read_checkpoint, tag_of
from light_llm.errors import UserError
from light_llm.files import urls
from light_llm.preprocess.listing import listings

FIELD = "--data"
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Plan:
    """A checkpoint and the windows that it is evaluated on."""

    prefix: Path
    """DIR/TAG."""
    cfg: TrainingConfig
    """The checkpoint's, with the seq_len and dtype that were asked for."""
    batch_size: int | None
    """Rows of a batch; None where it was left open."""
    sources: list[tuple[str, TokenStream]]
    """Each path or name of a source, and its windows in the order of the shards that the config's
    seed gives."""
    shares: list[float] | None = None
    """Of named sources in the loss of all; None where each token counts once."""

    @property
    def most_windows(self) -> int:
        """Of a path."""
        return max(len(stream) for _, stream in self.sources)


def make_plan(
    prefix: str | Path,
    paths: Sequence[str] | None,
    *,
    batch_size: int | None = None,
    seq_len: int | None = None,
    dtype: str | None = None,
) -> Plan:
    """Read the checkpoint's config, and index the shards of each path.

    Args:
        paths: None is the `val_data` of the checkpoint's config.

    Raises:
        UserError: no such checkpoint or data, a number that the model cannot take, or tokens that
            the model has no embedding for.
    """
    prefix = tag_of(prefix)
    cfg = _changed(config_of(read_checkpoint(prefix)), seq_len, dtype)
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size={batch_size} must be 1 or more")
    if paths is None:
        stream = _val_data(cfg)
        if isinstance(stream, TokenStream):
            return Plan(prefix, cfg, batch_size, [("val_data", stream)])
        named = list(zip(stream.names, stream.streams, strict=True))
        return Plan(prefix, cfg, batch_size, named, [float(share) for share in stream.shares])
    if not paths:
        raise UserError(f"{FIELD} names no data; give a folder, a file or a glob of shards")
    return Plan(prefix, cfg, batch_size, [(str(path), _stream(path, cfg)) for path in paths])


def _changed(cfg: TrainingConfig, seq_len: int | None, dtype: str | None) -> TrainingConfig:
    changes: dict[str, Any] = {}
    if seq_len is not None:
        most = cfg.model.max_seq_len
        if not 1 <= seq_len <= most:
            raise UserError(f"--seq-len={seq_len} must be from 1 to model.max_seq_len={most}")
        changes["seq_len"] = seq_len
    if dtype is not None:
        if dtype not in DTYPES:
            raise UserError(f"--dtype={dtype!r} must be {', '.join(DTYPES)}")
        changes["dtype"] = dtype
        changes["bf16_model_weights"] = cfg.bf16_model_weights and dtype == "bfloat16"
    return cfg.model_copy(update=changes)


def _val_data(cfg: TrainingConfig) -> Stream:
    if cfg.val_data is None:
        raise UserError("--val-data: the checkpoint's config names no val_data; give --data PATH")
    for path in paths_of(cfg.val_data):
        if urls.is_url(path):  # the config may be a stranger's
            raise UserError(
                f"--val-data: val_data={path!r} of the checkpoint's config is a URL, which is "
                "asked only where the command names it; give it with --data"
            )
    stream = stream_of(
        cfg.val_data,
        seq_len=cfg.seq_len,
        seed=cfg.seed,
        vocab_size=cfg.model.vocab_size,
        field="val_data",
    )
    _check_tokenizer((shard.path for shard in stream.shards), cfg.model.vocab_size, "val_data")
    return stream


def _stream(path: str, cfg: TrainingConfig) -> TokenStream:
    vocab_size = cfg.model.vocab_size
    stream = TokenStream(
        path, seq_len=cfg.seq_len, seed=cfg.seed, vocab_size=vocab_size, field=FIELD
    )
    _check_tokenizer((shard.path for shard in stream.shards), vocab_size)
    return stream


def _check_tokenizer(shards: Iterable[str], vocab_size: int, field: str = FIELD) -> None:
    """Also where no token of the shards happens to be too large.

    Raises:
        UserError: a manifest says that a shard's tokenizer has more ids than the model.
    """
    for shard, manifest in listings(shards):
        if manifest.vocab_size > vocab_size:
            raise UserError(
                f"{field}: {shard} was written with a tokenizer of {manifest.vocab_size} ids "
                f"({manifest.path}), more than the model's vocab_size={vocab_size}; give shards "
                "that were written with the model's own tokenizer"
            )
