"""Weights of a checkpoint -> a model. Imports torch only to build one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from light_llm.checkpoint.layout import WEIGHTS, read_model_config, verify, weights_file
from light_llm.errors import UserError
from light_llm.models.transformer.config import TransformerConfig

if TYPE_CHECKING:
    import torch

    from light_llm.models.transformer import Transformer

DTYPES = ("F64", "F32", "F16", "BF16")  # of tensors in a weights file, as its header calls them


def read_state_dict(
    path_or_prefix: str | Path,
    config: TransformerConfig | None,
    load_file: Callable[[Path], dict[str, Any]],
) -> tuple[dict[str, Any], TransformerConfig]:
    """(what `load_file` of safetensors reads, the model's config) of a weights file or prefix.

    Without a config it is the snapshot's, and the file is compared with the digest there.

    Raises:
        UserError: no such file, a damaged one, or one of other numbers than weights are.
    """
    from safetensors import SafetensorError, safe_open

    path = weights_file(path_or_prefix)
    if config is None:
        config = read_model_config(path_or_prefix)
        verify(path_or_prefix, lambda name: name == WEIGHTS)
    try:
        with safe_open(path, framework="numpy") as file:
            types = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        for key, dtype in types.items():
            if dtype not in DTYPES:
                raise UserError(
                    f"{path}: {key} is {dtype}; weights must be one of {', '.join(DTYPES)}"
                )
        return load_file(path), config
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file: {error}") from None


def load_transformer(
    path_or_prefix: str | Path,
    config: TransformerConfig | None = None,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Transformer:
    """The PyTorch model of a checkpoint, in evaluation mode.

    Args:
        path_or_prefix: a .safetensors file, or DIR/TAG.
        config: read from the checkpoint's snapshot when left out.
        dtype: of the weights; float32, as stored, when left out.

    Raises:
        UserError: no such checkpoint, damaged files, or weights that do not fit the config.
    """
    import torch
    from safetensors.torch import load_file

    from light_llm.models.transformer.model import Transformer

    state_dict, config = read_state_dict(path_or_prefix, config, load_file)
    with torch.device("meta"):  # no memory and no random values for what is replaced at once
        model = Transformer(config)
    try:
        model.load_state_dict(state_dict, assign=True)
    except RuntimeError as error:  # torch lists every missing, unexpected and misshapen key
        path = weights_file(path_or_prefix)
        raise UserError(f"{path}: the weights do not fit the config: {error}") from None
    return model.to(device=device, dtype=dtype or torch.float32).eval()
