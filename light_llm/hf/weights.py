"""The weights of a checkpoint as safetensors of transformers, one shard in memory at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file

from conversion.mapping import TIED_KEY, table
from conversion.weights import as_numpy, check_keys, check_tied
from light_llm import __version__
from light_llm.checkpoint import parts
from light_llm.checkpoint.tensors import Reader, read_tensors
from light_llm.errors import UserError, one_line
from light_llm.files import given
from light_llm.hf.place import MARK, MARKER
from light_llm.models.transformer.config import TransformerConfig

INDEX = "model.safetensors.index.json"


class Written(NamedTuple):
    """What was written, for a person: parameters, bytes and files."""

    parameters: int
    size: int
    files: int


def parse_size(text: str) -> int:
    """`5GB` as bytes.

    Raises:
        UserError: it is not a positive number with a unit.
    """
    try:
        return parts.parse_size(text)
    except ValueError as error:
        raise UserError(f"--max-shard-size={text} {error}") from None


def write_weights(
    source: Path,
    cfg: TransformerConfig,
    names: Mapping[str, str],
    zeros: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    max_shard_size: int,
    folder: Path,
) -> Written:
    """Write the tensors of a checkpoint's weights into `folder`, rounded to `dtype`.

    Args:
        names: our key -> the one to write, of every tensor to write.
        zeros: names and shapes of tensors to add.
        max_shard_size: bytes; a tensor that is larger has a file of its own.

    Raises:
        UserError: the weights do not fit the config, or a number is too large for `dtype`.
    """
    stored = read_tensors(source)
    check_keys({key: tensor.shape for key, tensor in stored.items()}, cfg, source)
    shapes = {entry.key: entry.shape for entry in table(cfg)}
    shapes_there = {name: shapes[key] for key, name in names.items()} | dict(zeros)
    on_meta = {
        name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes_there.items()
    }
    plan = split_torch_state_dict_into_shards(on_meta, max_shard_size=max_shard_size)
    ours = {name: key for key, name in names.items()}
    with (
        given.foreign(lambda reason: f"{source}: not a whole safetensors file: {reason}"),
        Reader(stored, "pt") as reader,
    ):
        if cfg.tie_embeddings and TIED_KEY in stored:
            emb, head = (as_numpy(reader.whole(key)) for key in ("tok_emb.weight", TIED_KEY))
            check_tied(emb, head, source)
            del emb, head
        for shard, members in plan.filename_to_tensors.items():
            tensors = {
                name: torch.zeros(zeros[name], dtype=dtype)
                if name in zeros
                else _rounded(reader.whole(ours[name]), dtype, f"{source}: {ours[name]}")
                for name in members
            }
            try:
                save_file(tensors, folder / shard, metadata={"format": "pt", MARKER: __version__})
            except (SafetensorError, OSError) as error:
                raise UserError(f"{folder / shard}: cannot be written: {one_line(error)}") from None
            shutil.copymode(folder / MARK, folder / shard)  # safetensors lets only the user read
            del tensors
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    parameters = sum(tensor.numel() for tensor in on_meta.values())
    return Written(parameters, parameters * dtype.itemsize, len(plan.filename_to_tensors))


def _rounded(tensor: torch.Tensor, dtype: torch.dtype, source: str) -> torch.Tensor:
    rounded = tensor.float().to(dtype)
    if not bool(rounded.isfinite().all()):
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{source} holds NaN or infinity; use another tag")
        raise UserError(
            f"{source} has a value of {tensor.abs().max():.3g}, too large for --dtype "
            f"{str(dtype).removeprefix('torch.')}; use bfloat16 or float32"
        )
    return rounded.contiguous()
