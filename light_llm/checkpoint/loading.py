"""Weights of a checkpoint -> a model. Imports torch only to build one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from light_llm.checkpoint.layout import (
    WEIGHTS,
    Checkpoint,
    foreign_weights,
    locate_weights,
    model_config,
    read_checkpoint,
    steadily,
    verify,
)
from light_llm.errors import UserError
from light_llm.files import given
from light_llm.models.transformer.config import TransformerConfig

if TYPE_CHECKING:
    import torch

    from light_llm.models.transformer import Transformer

DTYPES = ("F64", "F32", "F16", "BF16")  # names in the header of a weights file
BUILT_AT_ONCE = 1000  # layers that a message may list by name


class Weights(NamedTuple):
    """What a weights file holds, and the model that takes it."""

    tensors: dict[str, Any]
    config: TransformerConfig
    path: Path


class Tensor(NamedTuple):
    """What the header of a weights file says about one tensor."""

    dtype: str  # one of DTYPES
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by key, without their values.

    Raises:
        UserError: it is not a safetensors file, or its numbers are not of a weights type.
    """
    from safetensors import safe_open

    given.check_regular(path, "the weights file")
    try:
        with given.foreign(str), safe_open(path, framework="numpy") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            tensors = {
                key: Tensor(part.get_dtype(), tuple(part.get_shape()))
                for key, part in slices.items()
            }
    except UserError as error:
        reason = str(error)
        if (kind := foreign_weights(path)) is not None:
            reason = f"it is {kind}"
        raise UserError(f"{path}: not a whole safetensors file: {reason}") from None
    for key, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise UserError(
                f"{path}: {key} is {tensor.dtype}; weights must be one of {', '.join(DTYPES)}; "
                "convert them where they came from (float8 and integers need their scales)"
            )
    return tensors


def check_layers(tensors: int, cfg: TransformerConfig, source: str | Path) -> None:
    """Refuse a config with more layers than the file has tensors, before a model is built.

    Args:
        tensors: how many tensors the file has.
        source: what messages name.

    Raises:
        UserError: there are too few tensors.
    """
    if cfg.num_layers > max(tensors, BUILT_AT_ONCE):
        raise UserError(
            f"{source}: the weights do not fit the model of the config: it has "
            f"num_layers={cfg.num_layers}, and the file {tensors} tensors; use the config that "
            "they were trained with"
        )


def read_weights(
    source: str | Path | Checkpoint,
    config: TransformerConfig | None,
    load_file: Callable[[Path], dict[str, Any]],
    check: Callable[[dict[str, Tensor], TransformerConfig, Path], None],
) -> Weights:
    """The weights of a file, a prefix or a checkpoint, by the `load_file` of safetensors.

    Without a config, the snapshot's is used, and the file is compared with the digest there.

    Args:
        check: compares what the file's header says with the config, before a tensor is read.

    Raises:
        UserError: no such file, a damaged one, or one whose numbers are not of a weights type.
    """

    def read(path: Path, cfg: TransformerConfig) -> Weights:
        tensors = read_header(path)
        check_layers(len(tensors), cfg, path)
        check(tensors, cfg, path)
        with given.foreign(lambda reason: f"{path}: not a whole safetensors file: {reason}"):
            return Weights(load_file(path), cfg, path)

    def of_checkpoint(checkpoint: Checkpoint) -> Weights:
        cfg = model_config(checkpoint)
        verify(checkpoint, lambda name: name == WEIGHTS)
        return read(checkpoint.files.weights, cfg)

    if config is not None:
        files = source.files if isinstance(source, Checkpoint) else locate_weights(source)
        return read(files.weights, config)
    if isinstance(source, Checkpoint):
        return of_checkpoint(source)
    return steadily(lambda: read_checkpoint(source), of_checkpoint)


def load_transformer(
    path_or_prefix: str | Path | Checkpoint,
    config: TransformerConfig | None = None,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Transformer:
    """The PyTorch model of a checkpoint, in evaluation mode.

    Args:
        path_or_prefix: a .safetensors file, DIR/TAG, or the result of `read_checkpoint`.
        config: read from the checkpoint's snapshot when left out.
        dtype: of the weights; float32, as stored, when left out.

    Raises:
        UserError: no such checkpoint, damaged files, or weights that do not fit the config.
    """
    import torch
    from safetensors.torch import load_file

    models: list[Transformer] = []

    def check(tensors: dict[str, Tensor], cfg: TransformerConfig, path: Path) -> None:
        models[:] = [_blank(cfg)]
        problems = list(_problems(tensors, models[0]))
        if problems:
            raise _misfit(path, "\n  " + "\n  ".join(problems))

    weights = read_weights(path_or_prefix, config, load_file, check)
    try:
        models[0].load_state_dict(weights.tensors, assign=True)
    except RuntimeError as error:  # a tied head that differs
        raise _misfit(weights.path, str(error)) from None
    return models[0].to(device=device, dtype=dtype or torch.float32).eval()


def _misfit(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: the weights do not fit the config: {reason}")


def _problems(tensors: dict[str, Tensor], model: Transformer) -> Iterator[str]:
    """What torch would report about the tensors, a line each."""
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    optional = {"lm_head.weight"} if model.cfg.tie_embeddings else set()
    for key, shape in wanted.items():
        if key not in tensors:
            if key not in optional:
                yield f"missing {key} {list(shape)}"
        elif tensors[key].shape != shape:
            yield f"{key} has shape {list(tensors[key].shape)}, the config says {list(shape)}"
    for key in tensors:
        if key not in wanted:
            yield f"unexpected {key} {list(tensors[key].shape)}"


def _blank(config: TransformerConfig) -> Transformer:
    """A model without memory or values, for weights that replace its own at once.

    On the meta device torch draws random numbers by a decomposition, for which it imports its
    compiler, torch._dynamo: seconds to draw nothing. So the initialisers that draw are skipped.
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
