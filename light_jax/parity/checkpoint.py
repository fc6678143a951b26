"""A checkpoint in both frameworks, and tokens to compare them on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flax import nnx

from conversion import load_jax, load_torch, to_torch
from light_jax.config import TrainingConfig, config_of
from light_jax.data.mixed import stream_of
from light_jax.sources import is_mixture, paths_of
from light_llm.checkpoint.reading import read_checkpoint, steadily
from light_llm.errors import UserError
from light_llm.files import urls

if TYPE_CHECKING:
    from light_llm.models.transformer import Transformer as TorchTransformer

LENGTH = 512  # tokens of a sequence, if --seq-len is not given


def read_training_config(prefix: str | Path) -> TrainingConfig:
    """The config that the checkpoint was trained with: `config_of`.

    Raises:
        UserError: there is no such checkpoint, or its config is not one.
    """
    return config_of(read_checkpoint(prefix))


def load_pair(prefix: str | Path) -> tuple[nnx.State, TorchTransformer]:
    """(float32 parameters for the JAX model, the PyTorch model) of a checkpoint.

    Raises:
        UserError: damaged files, or weights that do not fit the config.
    """
    return steadily(
        lambda: read_checkpoint(prefix),  # one for both, or a save in between would look like a bug
        lambda checkpoint: (
            nnx.split(load_jax(checkpoint), nnx.Param)[1],
            load_torch(checkpoint),
        ),
    )


def unequal_weights(params: nnx.State, torch_model: TorchTransformer) -> list[str]:
    """The tensors, by PyTorch's key, whose bits differ between the two."""
    ours = to_torch(params, torch_model.cfg)
    theirs = {key: value.numpy() for key, value in torch_model.state_dict().items()}
    return [key for key in theirs if ours[key].tobytes() != theirs[key].tobytes()]


def sample_tokens(
    cfg: TrainingConfig, sequences: int, length: int | None, random: bool
) -> tuple[np.ndarray, str]:
    """(tokens int32 [sequences, length], where they come from).

    The first windows of val_data; random ones where there is no val_data or `random` asks for them.

    Raises:
        UserError: a length that the model cannot take, or val_data that cannot be read.
    """
    if sequences < 1:
        raise UserError(f"--sequences={sequences} must be 1 or more")
    if length is None:
        length = min(cfg.seq_len, LENGTH)
    if not 1 <= length <= cfg.model.max_seq_len:
        raise UserError(
            f"--seq-len={length} must be from 1 to model.max_seq_len={cfg.model.max_seq_len}"
        )
    size = f"{sequences} sequences of {length}"
    remote = any(
        map(urls.is_url, paths_of(cfg.val_data))
    )  # a checkpoint's config may be a stranger's
    if random or cfg.val_data is None or remote:
        tokens_BT = np.random.default_rng(cfg.seed).integers(
            cfg.model.vocab_size, size=(sequences, length), dtype=np.int32
        )
        why = (
            "its val_data is at a URL, which is not asked"
            if remote
            else "the config names no val_data"
        )
        why = "--random" if random else why
        return tokens_BT, f"random ({why}), {size}"
    try:
        stream = stream_of(
            cfg.val_data,
            seq_len=length,
            seed=cfg.seed,
            vocab_size=cfg.model.vocab_size,
            field="val_data",
        )
        windows = stream.windows(np.arange(sequences))
    except UserError as error:
        raise UserError(
            f"{error}\n(val_data of the checkpoint's config; --random compares on random tokens)"
        ) from None
    named = paths_of(cfg.val_data) if is_mixture(cfg.val_data) else cfg.val_data
    return np.ascontiguousarray(windows[:, :-1]), f"val_data {named!r}, {size}"
