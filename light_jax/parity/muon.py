"""torch.optim.Muon on the matrices inside layers and AdamW on the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from light_jax.sections import OptimizerConfig
from light_jax.torch_runs.file import require_muon


class MuonWithAdamW(torch.optim.Optimizer):
    """Both optimizers' groups are its own, so that a schedule and a gradient scaler see one.

    Raises:
        UserError: this PyTorch has no Muon.
    """

    def __init__(self, cfg: OptimizerConfig, parameters: Mapping[str, torch.Tensor]) -> None:
        hidden = [p for key, p in parameters.items() if key.startswith("layers.") and p.ndim == 2]
        rest = [p for key, p in parameters.items() if not key.startswith("layers.") and p.ndim == 2]
        vectors = [p for p in parameters.values() if p.ndim < 2]
        self._muon = require_muon()(
            hidden,
            lr=cfg.lr,
            weight_decay=cfg.weight_decay,
            momentum=cfg.muon_momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        self._in_float32 = cfg.muon_dtype == "float32"
        self._adamw = torch.optim.AdamW(
            [
                {"params": rest, "weight_decay": cfg.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=cfg.lr,
            betas=(cfg.beta1, cfg.beta2),
            eps=cfg.eps,
        )
        super().__init__(self._muon.param_groups + self._adamw.param_groups, {})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        if self._in_float32:
            _step_in_float32(self._muon)
        else:
            self._muon.step()
        self._adamw.step()


@torch.no_grad()
def _step_in_float32(muon: Any) -> None:
    """torch.optim.Muon's step with its iteration in float32, for which it has no setting."""
    (group,) = muon.param_groups
    for p in group["params"]:
        if p.grad is None:
            continue
        kept = muon.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
        kept.lerp_(p.grad, 1 - group["momentum"])
        x = p.grad.lerp(kept, group["momentum"])
        x = x / x.norm().clamp(min=group["eps"])
        a, b, c = group["ns_coefficients"]
        for _ in range(group["ns_steps"]):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_(x, alpha=group["lr"] * 0.2 * max(p.shape) ** 0.5)
