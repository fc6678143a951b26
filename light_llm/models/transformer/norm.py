"""Norms, computed and returned in float32. Letters: B batch, T position, D model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    """x · rsqrt(mean(x²) + eps) · weight over the last axis (Zhang & Sennrich 2019)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        x = x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + self.eps)
        return x * self.weight.float()


class LayerNorm(nn.Module):
    """(x - mean) · rsqrt(var + eps) · weight over the last axis, no bias (Ba et al. 2016)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.norm.weight.float()
        return F.layer_norm(x.float(), weight.shape, weight, eps=self.norm.eps)


NORM: dict[str, type[RMSNorm] | type[LayerNorm]] = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}
