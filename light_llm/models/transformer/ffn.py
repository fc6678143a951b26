"""Feed-forward layers. Letters: B batch, T position, D model, F ffn."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from light_llm.models.transformer.config import TransformerConfig

Activation = Callable[[torch.Tensor], torch.Tensor]

ACTIVATION: dict[str, Activation] = {
    "silu": F.silu,
    "gelu": functools.partial(F.gelu, approximate="none"),  # erf
    "relu": F.relu,
}


class GatedFFN(nn.Module):
    """down(act(gate(x)) · up(x)): swiglu with silu, geglu with gelu (Shazeer 2020)."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        linear = functools.partial(nn.Linear, bias=cfg.ffn.bias)
        self.gate_proj = linear(cfg.d_model, cfg.ffn_dim)
        self.up_proj = linear(cfg.d_model, cfg.ffn_dim)
        self.down_proj = linear(cfg.ffn_dim, cfg.d_model)
        self.activation = {"swiglu": "silu", "geglu": "gelu"}[cfg.ffn.variant]
        self.dropout = cfg.ffn.dropout

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_BTD = x_BTD.to(self.gate_proj.weight.dtype)
        hidden_BTF = ACTIVATION[self.activation](self.gate_proj(x_BTD)) * self.up_proj(x_BTD)
        return self.down_proj(F.dropout(hidden_BTF, self.dropout, self.training))


class MLP(nn.Module):
    """fc2(act(fc1(x)))."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        linear = functools.partial(nn.Linear, bias=cfg.ffn.bias)
        self.fc1 = linear(cfg.d_model, cfg.ffn_dim)
        self.fc2 = linear(cfg.ffn_dim, cfg.d_model)
        self.activation = cfg.ffn.activation
        self.dropout = cfg.ffn.dropout

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_BTD = x_BTD.to(self.fc1.weight.dtype)
        hidden_BTF = ACTIVATION[self.activation](self.fc1(x_BTD))
        return self.fc2(F.dropout(hidden_BTF, self.dropout, self.training))


FFN: dict[str, type[GatedFFN] | type[MLP]] = {"swiglu": GatedFFN, "geglu": GatedFFN, "mlp": MLP}
