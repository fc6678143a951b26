"""Attention layers. Letters: B batch, T query, S key, N heads, K kv-heads, G = N/K, H head_dim,
D model.
"""

from __future__ import annotations

import functools

import torch
from torch import nn

from light_llm.models.transformer.attend import attend
from light_llm.models.transformer.cache import Cache
from light_llm.models.transformer.config import TransformerConfig
from light_llm.models.transformer.mask import span_of
from light_llm.models.transformer.norm import RMSNorm
from light_llm.models.transformer.positional import Geometry, apply_complex_rope, apply_rope


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023); mha and mqa are its two ends.

    Query head n reads kv head n // G.
    """

    def __init__(self, cfg: TransformerConfig, layer: int) -> None:
        super().__init__()
        att = cfg.attention
        linear = functools.partial(nn.Linear, bias=att.bias or att.qkv_bias)
        q_dim, kv_dim = att.num_heads * att.head_dim, att.num_kv_heads * att.head_dim
        self.q_proj = linear(cfg.d_model, q_dim)
        self.k_proj = linear(cfg.d_model, kv_dim)
        self.v_proj = linear(cfg.d_model, kv_dim)
        self.out_proj = nn.Linear(q_dim, cfg.d_model, bias=att.bias)
        self.q_norm = RMSNorm(att.head_dim, cfg.norm.eps) if att.qk_norm else None
        self.k_norm = RMSNorm(att.head_dim, cfg.norm.eps) if att.qk_norm else None
        self.head_dim, self.dropout, self.span = att.head_dim, att.dropout, span_of(att, layer)

    def forward(
        self, x_BTD: torch.Tensor, geometry: Geometry, cache: Cache | None = None
    ) -> torch.Tensor:
        B, T, _ = x_BTD.shape
        x_BTD = x_BTD.to(self.q_proj.weight.dtype)

        def heads(proj: nn.Linear, norm: RMSNorm | None = None) -> torch.Tensor:
            x_BTNH = proj(x_BTD).reshape(B, T, -1, self.head_dim)
            return x_BTNH if norm is None else norm(x_BTNH).to(x_BTNH.dtype)

        q_BTNH = apply_rope(heads(self.q_proj, self.q_norm), geometry)
        k_BSKH = apply_rope(heads(self.k_proj, self.k_norm), geometry)
        v_BSKH = heads(self.v_proj)
        out_BTNH = attend_through(self, q_BTNH, k_BSKH, v_BSKH, geometry, cache)
        return self.out_proj(out_BTNH.reshape(B, T, -1))


class ComplexAttention(nn.Module):
    """Attention with complex queries and keys: the score is Re(q · conj(k)); v is real."""

    def __init__(self, cfg: TransformerConfig, layer: int) -> None:
        super().__init__()
        att = cfg.attention
        linear = functools.partial(nn.Linear, bias=att.bias or att.qkv_bias)
        dim = att.num_heads * att.head_dim
        self.q_re = linear(cfg.d_model, dim)
        self.q_im = linear(cfg.d_model, dim)
        self.k_re = linear(cfg.d_model, dim)
        self.k_im = linear(cfg.d_model, dim)
        self.v_proj = linear(cfg.d_model, dim)
        self.out_proj = nn.Linear(dim, cfg.d_model, bias=att.bias)
        self.head_dim, self.dropout, self.span = att.head_dim, att.dropout, span_of(att, layer)

    def forward(
        self, x_BTD: torch.Tensor, geometry: Geometry, cache: Cache | None = None
    ) -> torch.Tensor:
        B, T, _ = x_BTD.shape
        x_BTD = x_BTD.to(self.q_re.weight.dtype)

        def heads(proj: nn.Linear) -> torch.Tensor:
            return proj(x_BTD).reshape(B, T, -1, self.head_dim)

        # q_re·k_re + q_im·k_im is one dot product over both parts laid side by side.
        q_BTNH = torch.cat(apply_complex_rope(heads(self.q_re), heads(self.q_im), geometry), dim=-1)
        k_BSNH = torch.cat(apply_complex_rope(heads(self.k_re), heads(self.k_im), geometry), dim=-1)
        v_BSNH = heads(self.v_proj)
        out_BTNH = attend_through(self, q_BTNH, k_BSNH, v_BSNH, geometry, cache)
        return self.out_proj(out_BTNH.reshape(B, T, -1))


def attend_through(
    layer: Attention | ComplexAttention,
    q_BTNH: torch.Tensor,
    k_BTKH: torch.Tensor,
    v_BTKH: torch.Tensor,
    geometry: Geometry,
    cache: Cache | None,
) -> torch.Tensor:
    """`attend` over these keys and values and those in the cache, to which these are added."""
    scale, slopes_N, empty_BS = layer.head_dim**-0.5, geometry.slopes_N, None
    if cache is not None:
        k_BTKH, v_BTKH = cache.extend(k_BTKH, v_BTKH)
        empty_BS = cache.empty(k_BTKH.shape[1])
    return attend(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        scale=scale,
        span=layer.span,
        slopes_N=slopes_N,
        empty_BS=empty_BS,
        back_BT=geometry.back_BT,
        dropout_rate=layer.dropout if layer.training else 0.0,
    )


ATTENTION: dict[str, type[Attention] | type[ComplexAttention]] = {
    "mha": Attention,
    "gqa": Attention,
    "mqa": Attention,
    "complex": ComplexAttention,
}
