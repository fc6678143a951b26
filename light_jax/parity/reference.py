"""Training in plain PyTorch: the reference that light_jax.training.step is compared with.

It shares with the JAX side only the config and the rule for giving up. Model, optimizers, clipping,
autocast and gradient scaler are torch's. The schedule is written a second time on purpose: a
function that both used would not be compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

from light_jax.config import TrainingConfig
from light_jax.parity.muon import MuonWithAdamW
from light_jax.sections import OptimizerConfig
from light_jax.training.verdict import MAX_SKIPS
from light_llm.models.transformer import Transformer
from light_llm.models.transformer.model import capped


@dataclasses.dataclass(frozen=True)
class Update:
    """The numbers of one training step."""

    loss: float  # before the update
    grad_norm: float | None  # before clipping; None where float16 overflowed
    finite: bool  # if not, nothing was updated, and training is over
    z_loss: float | None = None  # None where the config has none


class ReferenceTrainer:
    """The PyTorch model and its optimizer, a step at a time, on the CPU.

    Args:
        weights: PyTorch's state dict of the start, float32.
    """

    def __init__(self, cfg: TrainingConfig, weights: Mapping[str, np.ndarray]) -> None:
        self.cfg, self.done, self._skipped = cfg, 0, 0
        self.model = Transformer(cfg.model).train()
        self.model.load_state_dict({key: torch.tensor(value) for key, value in weights.items()})
        self._masters: dict[str, torch.Tensor] = dict(self.model.named_parameters())
        if cfg.bf16_model_weights:
            self._masters = {
                name: parameter.detach().clone().requires_grad_()
                for name, parameter in self._masters.items()
            }
            self.model.bfloat16()
        self._optimizer = make_optimizer(cfg.optimizer, self._masters)
        self._scaler = torch.amp.GradScaler(  # its defaults are the design's
            "cpu", init_scale=2.0**16, growth_interval=2000, enabled=cfg.dtype == "float16"
        )

    def step(self, tokens_ABS: np.ndarray) -> Update:
        """One update on micro-batches [A, B, S], S = seq_len + 1."""
        loss, z_loss = self._backward(torch.from_numpy(tokens_ABS).long())
        self._scaler.unscale_(self._optimizer)
        norm = self._clip()
        overflow = self._scaler.is_enabled() and math.isfinite(loss) and not math.isfinite(norm)
        self._skipped = self._skipped + 1 if overflow else 0
        finite = math.isfinite(norm) if not overflow else self._skipped < MAX_SKIPS
        finite = finite and math.isfinite(loss)
        if finite:
            rate = self.cfg.optimizer.lr * rate_factor(self.cfg, self.done)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self._scaler.step(self._optimizer)
            self._scaler.update()
            if self._scaler.is_enabled() and self._scaler.get_scale() < 1.0:
                self._scaler.update(1.0)
            self._copy_masters()
        self._optimizer.zero_grad()
        self.done += 1
        return Update(loss, None if overflow else norm, finite, z_loss if self.cfg.z_loss else None)

    def weights(self) -> dict[str, np.ndarray]:
        """The float32 parameters by PyTorch's key; a tied head only as the embedding."""
        return {name: p.detach().numpy() for name, p in self._masters.items()}

    def _backward(self, tokens_ABS: torch.Tensor) -> tuple[float, float]:
        """Mean cross-entropy and z-loss; leaves the gradients of their sum, scaled, on the float32
        parameters."""
        total = total_z = 0.0
        for tokens_BS in tokens_ABS:
            with autocast(self.cfg.dtype):
                hidden_BTD = self.model.hidden(tokens_BS[:, :-1])
            logits_BTV = logits_of(self.model, hidden_BTD, self.cfg.dtype)
            loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BS[:, 1:].flatten())
            total += loss.item()
            if self.cfg.z_loss:
                z_loss = self.cfg.z_loss * logits_BTV.logsumexp(-1).square().mean()
                total_z, loss = total_z + z_loss.item(), loss + z_loss
            self._scaler.scale(loss / len(tokens_ABS)).backward()
            if self.cfg.bf16_model_weights:
                self._collect_gradients()
        return total / len(tokens_ABS), total_z / len(tokens_ABS)

    def _clip(self) -> float:
        """Clip the gradients by their global norm; returns the norm before clipping.

        clip_grad_norm_ itself adds up squares in float32, which on a CPU loses a
        thousandth of the norm of a large embedding's gradient.
        """
        parameters = [p for p in self._masters.values() if p.grad is not None]
        norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float64) for p in parameters]
        norm = torch.linalg.vector_norm(torch.stack(norms)).float()
        if self.cfg.optimizer.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.cfg.optimizer.grad_clip, norm)
        return norm.item()

    def _collect_gradients(self) -> None:
        """Add the bfloat16 weights' gradients to those of their masters, in float32."""
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                master, gradient = self._masters[name], parameter.grad.float()
                master.grad = gradient if master.grad is None else master.grad + gradient
                parameter.grad = None

    def _copy_masters(self) -> None:
        if self.cfg.bf16_model_weights:
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    parameter.copy_(self._masters[name])


def make_optimizer(
    cfg: OptimizerConfig, parameters: Mapping[str, torch.Tensor]
) -> torch.optim.Optimizer:
    """torch's own, in groups: weight decay acts on two or more dimensions only."""
    if cfg.type == "muon":
        return MuonWithAdamW(cfg, parameters)
    groups = [
        {
            "params": [p for p in parameters.values() if p.ndim >= 2],
            "weight_decay": cfg.weight_decay,
        },
        {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    if cfg.type == "sgd":
        return torch.optim.SGD(groups, lr=cfg.lr, momentum=cfg.beta1)
    adam = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[cfg.type]
    return adam(groups, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps)


def rate_factor(cfg: TrainingConfig, n: int) -> float:
    """The factor on the learning rate in the update of step n (from 0)."""
    warmup, low = cfg.scheduler.warmup_steps, cfg.scheduler.min_lr_ratio
    begin = {"wsd": 9 * cfg.num_steps // 10}.get(cfg.scheduler.type, warmup)
    p = min(1.0, max(0, n - begin) / max(1, cfg.num_steps - begin))
    after_warmup = {
        "constant": 1.0,
        "linear": max(low, 1.0 - (1.0 - low) * p),
        "cosine": low + (1.0 - low) * (1.0 + math.cos(math.pi * p)) / 2,
    }
    after_warmup["wsd"] = after_warmup["cosine"]
    return n / max(1, warmup) if n < warmup else after_warmup[cfg.scheduler.type]


def autocast(dtype: str) -> contextlib.AbstractContextManager[object]:
    """torch's autocast to a 16-bit dtype: matmuls take it; the model keeps the rest in float32."""
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast("cpu", dtype=getattr(torch, dtype))


def logits_of(model: Transformer, hidden_BTD: torch.Tensor, dtype: str) -> torch.Tensor:
    """Logits [B, T, V], float32 and capped, from hidden states and a head in `dtype`.

    autocast's own would be rounded to 16 bits.
    """
    in_dtype = getattr(torch, dtype)
    head_VD = model.lm_head.weight.to(in_dtype).float()
    logits_BTV = F.linear(hidden_BTD.to(in_dtype).float(), head_VD)
    return capped(logits_BTV, model.cfg.logit_softcap)
