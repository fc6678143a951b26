"""A checkpoint as an ONNX file: the PyTorch model's graph, compared with it before it is published.

Letters: B batch, T position, V vocab.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from light_llm.checkpoint.reading import model_config, read_checkpoint
from light_llm.errors import UserError, one_line
from light_llm.files import disk, given
from light_llm.formats.output import check_output, check_packages, size_of
from light_llm.models.transformer.config import TransformerConfig

if TYPE_CHECKING:
    from light_llm.models.transformer import Transformer

LARGEST = 2**31 - 2**24
"""Bytes of weights: the one message of protobuf that an ONNX file is ends below 2 GiB."""
CLOSE = 1e-4
"""How far a logit may be from PyTorch's, as a part of the largest one (of 1, if that is less)."""


def write_onnx(prefix: str | Path, out: str | Path, *, overwrite: bool = False) -> list[str]:
    """Write OUT.onnx: `tokens` int64 [B, T] -> `logits` float32 [B, T, V], any B, T <= max_seq_len.

    Runs both models on two batches of random tokens; after an error there is no new file.

    Args:
        prefix: DIR/TAG.
        overwrite: replace a file that is there.

    Returns:
        The lines to print.

    Raises:
        UserError: the weights are too large for one file, torch cannot export the model, or
            onnxruntime gives other logits.
    """
    out = Path(out)
    check_packages("llm-convert onnx", "torch,onnx", "torch", "onnx", "onnxscript", "onnxruntime")
    check_output(out, ".onnx", overwrite)
    _check_size(model_config(read_checkpoint(prefix)), prefix)

    from light_llm.checkpoint.loading import load_transformer

    # by name, so that it is looked up again if a run has replaced it
    model = load_transformer(prefix)
    with disk.replacing(out) as temporary:
        _export(model, temporary, prefix)
        with given.foreign(lambda reason: f"{prefix}: onnxruntime cannot run the export: {reason}"):
            distance = _distance(model, temporary)
        if not distance <= CLOSE:
            raise UserError(
                f"{prefix}: onnxruntime's logits differ from PyTorch's by {distance:.1e} of the "
                f"largest, and {CLOSE:g} is allowed; use other versions of torch and onnxruntime"
            )
    return [f"{out}: {size_of(out)}; logits within {distance:.1e} of PyTorch's"]


def _check_size(cfg: TransformerConfig, source: object) -> None:
    from conversion.mapping import table

    size = 4 * sum(int(np.prod(entry.shape)) for entry in table(cfg))
    if size > LARGEST:
        raise UserError(
            f"{source}: the weights take {size / 2**30:.1f} GiB in float32, and an ONNX file holds "
            "less than 2 GiB; use llm-convert gguf or a smaller model"
        )


def _export(model: Transformer, path: Path, source: object) -> None:
    import torch
    from torch.export import Dim

    longest = model.cfg.max_seq_len
    # more than one of each: an exporter takes a size of 1 for a constant
    tokens_BT = torch.zeros(2, min(3, longest), dtype=torch.int64)
    length = Dim("length", min=1, max=longest) if longest > 1 else None
    try:
        with _silent():
            torch.onnx.export(
                model,
                (tokens_BT,),
                path,
                dynamo=True,
                input_names=["tokens"],
                output_names=["logits"],
                dynamic_shapes={"tokens_BT": {0: Dim("batch", min=1), 1: length}},
                external_data=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:  # its own text is advice to programmers
        reason = one_line(error.__cause__ or error)
        raise UserError(
            f"{source}: torch {torch.__version__} cannot export this model: {reason}; use llm-run"
        ) from None


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Around the exporter, which tells its progress and deprecations of its own code."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _distance(model: Transformer, path: Path) -> float:
    """The largest difference of a logit, as a part of the largest logit, on two shapes."""
    import onnxruntime
    import torch

    options: Any = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    random, longest, distances = np.random.default_rng(0), model.cfg.max_seq_len, []
    for batch, length in ((1, min(longest, 64)), (3, min(longest, 7))):
        tokens_BT = random.integers(model.cfg.vocab_size, size=(batch, length))
        if model.document_end is not None:
            tokens_BT[:, length // 2] = model.document_end
        (theirs_BTV,) = session.run(["logits"], {"tokens": tokens_BT})
        with torch.no_grad():
            ours_BTV = model(torch.from_numpy(tokens_BT)).numpy()
        scale = max(1.0, float(np.abs(ours_BTV).max()))
        distances.append(float(np.abs(theirs_BTV - ours_BTV).max()) / scale)
    return float(np.max(distances))  # NaN stays NaN
