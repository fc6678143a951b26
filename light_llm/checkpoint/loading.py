"""Weights of a checkpoint -> a model. Imports torch only to build one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from light_llm.checkpoint.digests import verify
from light_llm.checkpoint.layout import locate_weights
from light_llm.checkpoint.parts import is_weights
from light_llm.checkpoint.reading import Checkpoint, model_config, read_checkpoint, steadily
from light_llm.checkpoint.tensors import Reader, Tensor, read_tensors, spelling
from light_llm.errors import UserError
from light_llm.files import given
from light_llm.lazy import importing
from light_llm.models.transformer.config import TransformerConfig

if TYPE_CHECKING:
    import torch

    from light_llm.models.transformer import Transformer

BUILT_AT_ONCE = 1000  # layers that a message may list by name


class Weights(NamedTuple):
    """What a weights file holds, and the model that takes it."""

    tensors: dict[str, Any]
    config: TransformerConfig
    path: Path


def import_torch() -> None:
    """Import what `--backend torch` needs, in one go.

    Raises:
        UserError: PyTorch is not installed.
    """
    try:
        with importing():
            import torch  # noqa: F401
    except ImportError:
        raise UserError(
            "--backend=torch needs PyTorch; pip install 'light-llm-jax[torch]', or use "
            "--backend jax"
        ) from None


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
    framework: str,
    check: Callable[[dict[str, Tensor], TransformerConfig, Path], None],
) -> Weights:
    """The weights of a file or its parts, a prefix, a Hugging Face folder or a checkpoint.

    Without a config, the snapshot's is used, and the file is compared with the digest there.

    Args:
        framework: of the tensors: `numpy` or `pt`.
        check: compares what the file's header says with the config, before a tensor is read.

    Raises:
        UserError: no such file, a damaged one, or one whose numbers are not of a weights type.
    """

    def read(path: Path, cfg: TransformerConfig) -> Weights:
        tensors = read_tensors(path)
        check_layers(len(tensors), cfg, path)
        check(tensors, cfg, path)
        with (
            given.foreign(lambda reason: f"{path}: not a whole safetensors file: {reason}"),
            Reader(tensors, framework) as reader,
        ):
            return Weights({key: reader.whole(key) for key in tensors}, cfg, path)

    def of_checkpoint(checkpoint: Checkpoint) -> Weights:
        cfg = model_config(checkpoint)
        verify(checkpoint, is_weights)
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
        path_or_prefix: a .safetensors file, DIR/TAG, the folder of a Hugging Face model, or the
            result of `read_checkpoint`.
        config: read from the checkpoint's snapshot when left out.
        dtype: of the weights; float32, as stored, when left out.

    Raises:
        UserError: no such checkpoint, damaged files, or weights that do not fit the config.
    """
    import torch

    models: list[Transformer] = []

    def check(tensors: dict[str, Tensor], cfg: TransformerConfig, path: Path) -> None:
        models[:] = [_blank(cfg)]
        problems = list(_problems(tensors, models[0], spelling(path)))
        if problems:
            raise _misfit(path, "\n  " + "\n  ".join(problems))

    weights = read_weights(path_or_prefix, config, "pt", check)
    try:
        models[0].load_state_dict(weights.tensors, assign=True)
    except RuntimeError as error:  # a tied head that differs
        raise _misfit(weights.path, f" {error}") from None
    return models[0].to(device=device, dtype=dtype or torch.float32).eval()


def _misfit(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: the weights do not fit the config:{reason}")


def _problems(
    tensors: dict[str, Tensor], model: Transformer, spelt: Callable[[str], str]
) -> Iterator[str]:
    """What torch would report about the tensors, a line each."""
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    optional = {"lm_head.weight"} if model.cfg.tie_embeddings else set()
    for key, shape in wanted.items():
        if key not in tensors:
            if key not in optional:
                yield f"missing {spelt(key)} {list(shape)}"
        elif tensors[key].shape != shape:
            found = list(tensors[key].shape)
            yield f"{spelt(key)} has shape {found}, the config says {list(shape)}"
    for key in tensors:
        if key not in wanted:
            yield f"unexpected {spelt(key)} {list(tensors[key].shape)}"


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
