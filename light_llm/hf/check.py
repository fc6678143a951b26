"""The self-check of an export: its logits beside those of the checkpoint."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from light_llm.checkpoint.loading import load_transformer
from light_llm.checkpoint.reading import Checkpoint
from light_llm.errors import UserError
from light_llm.files import given
from light_llm.models.transformer.config import TransformerConfig
from light_llm.models.transformer.mask import document_end_of
from light_llm.tokenizer.hub import offline

RELATIVE = 2e-5
"""Largest difference, in units of the largest logit or of 1, whichever is larger."""
ROWS, COLUMNS = 2, 64
LONGEST = 1024  # columns, where a window is to be exceeded


class Difference(NamedTuple):
    """Largest difference of two logits, and the largest logit."""

    largest: float
    logit: float

    @property
    def limit(self) -> float:
        return RELATIVE * max(1.0, self.logit)


def compare(
    checkpoint: Checkpoint, folder: Path, dtype: torch.dtype, *, documents: bool
) -> Difference:
    """The logits of `folder`, loaded by AutoModelForCausalLM, beside those of the checkpoint.

    Both compute in float32, one after the other, with the weights rounded to `dtype`.

    Args:
        documents: whether the class has `attention.document_mask`; else rows are one document.

    Raises:
        UserError: they differ by more than `Difference.limit`, or transformers cannot load it.
    """
    model = load_transformer(checkpoint)
    tokens_BT = _tokens(model.cfg, documents)
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype).float()
        wanted_BTV = model(tokens_BT)
    del model
    gc.collect()
    explain = lambda reason: f"transformers cannot use the folder that was written: {reason}"  # noqa: E731
    with given.foreign(explain), torch.inference_mode():
        theirs = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, local_files_only=True, trust_remote_code=False
        ).eval()
        got_BTV = theirs(tokens_BT, use_cache=False).logits
    difference = Difference(
        float((got_BTV - wanted_BTV).abs().max()), float(wanted_BTV.abs().max())
    )
    if not difference.largest <= difference.limit:  # NaN too
        raise UserError(
            f"the logits of the folder differ from the checkpoint's by {difference.largest:.2g}, "
            f"more than {difference.limit:.2g}, so it is not published; please report this"
        )
    return difference


def _tokens(cfg: TransformerConfig, documents: bool) -> torch.Tensor:
    attention = cfg.attention
    window = max(each or 0 for each in (attention.window_size, *(attention.window_pattern or ())))
    columns = min(cfg.max_seq_len, LONGEST, max(COLUMNS, window + COLUMNS // 4))
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(cfg.vocab_size, (ROWS, columns), generator=generator)
    end = document_end_of(cfg)
    if end is not None and documents:
        tokens_BT[:, columns // 3] = end
    elif end is not None:
        tokens_BT[tokens_BT == end] = 0 if end else cfg.vocab_size - 1
    return tokens_BT


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """transformers without its progress bars, warnings and requests to the hub."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with offline():
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
