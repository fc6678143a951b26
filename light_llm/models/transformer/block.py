"""One layer: attention and ffn around the residual stream.

Letters: B batch, T position, D model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from light_llm.models.transformer.attention import ATTENTION
from light_llm.models.transformer.cache import Cache
from light_llm.models.transformer.config import TransformerConfig
from light_llm.models.transformer.ffn import FFN
from light_llm.models.transformer.norm import NORM
from light_llm.models.transformer.positional import Geometry

Layer = Callable[[torch.Tensor], torch.Tensor]


def pre(x: torch.Tensor, sublayer: Layer, norm: Layer, post_norm: Layer | None) -> torch.Tensor:
    return x + sublayer(norm(x))


def post(x: torch.Tensor, sublayer: Layer, norm: Layer, post_norm: Layer | None) -> torch.Tensor:
    return norm(x + sublayer(x))


def sandwich(
    x: torch.Tensor, sublayer: Layer, norm: Layer, post_norm: Layer | None
) -> torch.Tensor:
    assert post_norm is not None
    return x + post_norm(sublayer(norm(x)))


PLACEMENT = {"pre": pre, "post": post, "sandwich": sandwich}


class Block(nn.Module):
    def __init__(self, cfg: TransformerConfig, layer: int) -> None:
        super().__init__()
        norm = NORM[cfg.norm.type]
        self.attn = ATTENTION[cfg.attention.variant](cfg, layer)
        self.ffn = FFN[cfg.ffn.variant](cfg)
        self.norm1 = norm(cfg.d_model, cfg.norm.eps)
        self.norm2 = norm(cfg.d_model, cfg.norm.eps)
        sandwiched = cfg.norm.placement == "sandwich"
        self.post_norm1 = norm(cfg.d_model, cfg.norm.eps) if sandwiched else None
        self.post_norm2 = norm(cfg.d_model, cfg.norm.eps) if sandwiched else None
        self.placement, self.parallel = cfg.norm.placement, cfg.parallel_layers
        self.dropout = cfg.dropout

    def forward(
        self, x_BTD: torch.Tensor, geometry: Geometry, cache: Cache | None = None
    ) -> torch.Tensor:
        """The residual stream [B, T, D], float32, after this layer."""

        def attn(x: torch.Tensor) -> torch.Tensor:
            return F.dropout(self.attn(x, geometry, cache), self.dropout, self.training)

        def ffn(x: torch.Tensor) -> torch.Tensor:
            return F.dropout(self.ffn(x), self.dropout, self.training)

        if self.parallel:
            return x_BTD + attn(self.norm1(x_BTD)) + ffn(self.norm2(x_BTD))
        join = PLACEMENT[self.placement]
        x_BTD = join(x_BTD, attn, self.norm1, self.post_norm1)
        return join(x_BTD, ffn, self.norm2, self.post_norm2)
