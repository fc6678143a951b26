"""Sums of losses by the PyTorch twin, on one device. Letters as in the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from light_jax.evaluation.plan import Plan
from light_llm.checkpoint.loading import load_transformer
from light_llm.checkpoint.reading import Checkpoint, read_checkpoint, steadily
from light_llm.errors import UserError, one_line
from light_llm.models.transformer import Transformer
from light_llm.models.transformer.model import capped

Result = TypeVar("Result")

MAX_LOGITS = 2**26
"""Elements that exist at a time: 256 MiB in float32."""


class OnTorch:
    """A checkpoint's model on the first GPU, else on the CPU; see `evaluate.Model`."""

    is_main = True
    rows: list[int] | None = None

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.batch_size = min(plan.batch_size or plan.cfg.batch_size, plan.most_windows)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        kind = torch.cuda.get_device_name() if self._device == "cuda" else "cpu"
        self.where = f"torch on {kind}"
        self._dtype = getattr(torch, plan.cfg.dtype)
        weights = torch.bfloat16 if plan.cfg.bf16_model_weights else torch.float32

        def read(checkpoint: Checkpoint) -> tuple[int | None, Transformer]:
            model = load_transformer(checkpoint, device=self._device, dtype=weights)
            return checkpoint.step, model

        with self.guarded():
            self.step, self._model = steadily(lambda: read_checkpoint(plan.prefix), read)

    @torch.inference_mode()
    def loss_sum(self, tokens_BS: np.ndarray, mask_B: np.ndarray) -> Any:
        rows = mask_B > 0
        tokens = torch.from_numpy(np.ascontiguousarray(tokens_BS[rows])).to(self._device).long()
        with torch.autocast(self._device, dtype=self._dtype, enabled=self._dtype != torch.float32):
            hidden_BTD = self._model.hidden(tokens[:, :-1])
        return self._over_tokens(hidden_BTD, tokens[:, 1:])

    def _over_tokens(self, hidden_BTD: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """In float64: a sum of many numbers. Logits are float32, of matmul inputs in the dtype."""
        head_VD = self._model.lm_head.weight.to(self._dtype).float()
        hidden = hidden_BTD.to(self._dtype).float().flatten(0, 1)
        targets, size = targets_BT.flatten(), max(1, MAX_LOGITS // len(head_VD))
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for part, wanted in zip(hidden.split(size), targets.split(size), strict=True):
            logits = capped(F.linear(part, head_VD), self._model.cfg.logit_softcap)
            losses = F.cross_entropy(logits, wanted, reduction="none")
            total += losses.double().sum()
        return total

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError | torch.OutOfMemoryError) and (
                "not enough memory" not in str(error)  # as a CPU says it
            ):
                raise
            raise UserError(
                f"the evaluation: out of memory ({one_line(error, 200)}); use a smaller "
                "--batch-size"
            ) from None

    def together(self, read: Callable[[], Result]) -> Result:
        return read()
