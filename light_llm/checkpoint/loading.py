"""Weights of a checkpoint -> a model. Imports torch only to build one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from light_llm.checkpoint.layout import (
    WEIGHTS,
    Checkpoint,
    locate_weights,
    model_config,
    read_checkpoint,
    steadily,
    verify,
)
from light_llm.errors import UserError
from light_llm.models.transformer.config import TransformerConfig

if TYPE_CHECKING:
    import torch

    from light_llm.models.transformer import Transformer

DTYPES = ("F64", "F32", "F16", "BF16")  # of tensors in a weights file, as its header calls them


class Weights(NamedTuple):
    """What a weights file holds, and the model that takes it."""

    tensors: dict[str, Any]
    config: TransformerConfig
    path: Path


def read_weights(
    source: str | Path | Checkpoint,
    config: TransformerConfig | None,
    load_file: Callable[[Path], dict[str, Any]],
) -> Weights:
    """The weights of a file, a prefix or a checkpoint, by the `load_file` of safetensors.

    Without a config it is the snapshot's, and the file is compared with the digest there.

    Raises:
        UserError: no such file, a damaged one, or one of other numbers than weights are.
    """

    def of_checkpoint(checkpoint: Checkpoint) -> Weights:
        cfg = model_config(checkpoint)
        verify(checkpoint, lambda name: name == WEIGHTS)
        path = checkpoint.files.weights
        return Weights(_read(path, load_file), cfg, path)

    if config is not None:
        files = source.files if isinstance(source, Checkpoint) else locate_weights(source)
        return Weights(_read(files.weights, load_file), config, files.weights)
    if isinstance(source, Checkpoint):
        return of_checkpoint(source)
    return steadily(lambda: read_checkpoint(source), of_checkpoint)


def _read(path: Path, load_file: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            types = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        for key, dtype in types.items():
            if dtype not in DTYPES:
                raise UserError(
                    f"{path}: {key} is {dtype}; weights must be one of {', '.join(DTYPES)}"
                )
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file: {error}") from None


def load_transformer(
    path_or_prefix: str | Path | Checkpoint,
    config: TransformerConfig | None = None,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Transformer:
    """The PyTorch model of a checkpoint, in evaluation mode.

    Args:
        path_or_prefix: a .safetensors file, DIR/TAG, or what `read_checkpoint` gave.
        config: read from the checkpoint's snapshot when left out.
        dtype: of the weights; float32, as stored, when left out.

    Raises:
        UserError: no such checkpoint, damaged files, or weights that do not fit the config.
    """
    import torch
    from safetensors.torch import load_file

    weights = read_weights(path_or_prefix, config, load_file)
    model = _blank(weights.config)
    try:
        model.load_state_dict(weights.tensors, assign=True)
    except RuntimeError as error:  # torch lists every missing, unexpected and misshapen key
        raise UserError(f"{weights.path}: the weights do not fit the config: {error}") from None
    return model.to(device=device, dtype=dtype or torch.float32).eval()


def _blank(config: TransformerConfig) -> Transformer:
    """A model without memory and without values, for weights that replace its own at once.

    On the meta device torch draws random numbers by a decomposition, for which it imports its
    compiler, torch._dynamo: seconds to draw nothing. So the initialisers that draw are passed over.
    """
    import torch
    from torch.nn import init
    from torch.overrides import TorchFunctionMode

    from light_llm.models.transformer.model import Transformer

    drawing = (init.normal_, init.uniform_, init.kaiming_uniform_)

    class WithoutDraws(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func in drawing:
                return kwargs["tensor"]
            return func(*args, **(kwargs or {}))

    with torch.device("meta"), WithoutDraws():
        return Transformer(config)
