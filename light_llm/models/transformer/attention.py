"""Attention layers, and the cache that lets them run a few tokens at a time.

Letters: B batch, T query, S key, N heads, K kv-heads, G = N/K, H head_dim, D model.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from light_llm.models.transformer.config import AttentionConfig, TransformerConfig
from light_llm.models.transformer.positional import Geometry, apply_complex_rope, apply_rope


class Span(NamedTuple):
    """Query t sees the keys t - left <= s <= t + right; None is unbounded."""

    left: int | None
    right: int | None


MASK = {
    "causal": lambda cfg: Span(left=None, right=0),
    "bidirectional": lambda cfg: Span(left=None, right=None),
    "sliding_window": lambda cfg: Span(left=cfg.window_size, right=0),
}


def span_of(cfg: AttentionConfig) -> Span:
    """The keys that a query sees under cfg.mask_type."""
    return MASK[cfg.mask_type](cfg)


@dataclass
class Cache:
    """One layer's keys (rotated) and values so far, for queries that come a few at a time.

    Rows beyond `filled` are room for later ones: appending to a tensor would copy it each time.
    """

    span: Span
    pad_B: torch.Tensor | None = None  # columns that stand empty before each row's first token
    length: int = 0  # columns so far, those that the buffers no longer hold included
    filled: int = 0
    k_BSKH: torch.Tensor | None = None
    v_BSKH: torch.Tensor | None = None

    def positions(self, T: int) -> torch.Tensor:
        """Of the next T columns [T], or [B, T] where rows differ; 0 where a row stands empty."""
        columns_T = torch.arange(self.length, self.length + T)
        if self.pad_B is None:
            return columns_T
        return (columns_T - self.pad_B[:, None]).clamp(min=0)

    def empty(self, S: int) -> torch.Tensor | None:
        """Which of the last S columns of each row [B, S] stand empty; None if none does."""
        if self.pad_B is None:
            return None
        return torch.arange(self.length - S, self.length) < self.pad_B[:, None]

    def extend(
        self, k_BTKH: torch.Tensor, v_BTKH: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append T columns; returns all keys and values [B, S, K, H] that their queries see."""
        T = k_BTKH.shape[1]
        kept = self._visible()
        rows = kept.stop - kept.start + T
        room = 0 if self.k_BSKH is None else self.k_BSKH.shape[1]
        # anew where it is full, and where a window needs much less than a long prompt did
        if self.k_BSKH is None or self.v_BSKH is None or not self.filled + T <= room <= 2 * rows:
            self.k_BSKH = _with_room(self.k_BSKH, k_BTKH, kept)
            self.v_BSKH = _with_room(self.v_BSKH, v_BTKH, kept)
            self.filled = kept.stop - kept.start
        start, stop = self._visible().start, self.filled + T
        self.k_BSKH[:, self.filled : stop] = k_BTKH
        self.v_BSKH[:, self.filled : stop] = v_BTKH
        self.filled, self.length = stop, self.length + T
        return self.k_BSKH[:, start:stop], self.v_BSKH[:, start:stop]

    def _visible(self) -> slice:
        """The rows that the next query still sees."""
        left = self.span.left
        return slice(0 if left is None else max(0, self.filled - left), self.filled)


def _with_room(old_BSKH: torch.Tensor | None, new_BTKH: torch.Tensor, kept: slice) -> torch.Tensor:
    """A buffer of the kept rows, with room for twice as many as they and the new ones are."""
    B, T, K, H = new_BTKH.shape
    rows = kept.stop - kept.start
    buffer_BKSH = new_BTKH.new_empty(B, K, 2 * (rows + T), H)  # a head's rows lie together
    buffer_BSKH = buffer_BKSH.transpose(1, 2)
    if old_BSKH is not None:
        buffer_BSKH[:, :rows] = old_BSKH[:, kept]
    return buffer_BSKH


def attend(
    q_BTNH: torch.Tensor,
    k_BSKH: torch.Tensor,
    v_BSKH: torch.Tensor,
    *,
    scale: float,
    span: Span,
    slopes_N: torch.Tensor | None = None,
    empty_BS: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """softmax(scale · q·k + alibi) · v, in v's dtype; the queries are the last T of S positions.

    Scores and softmax are float32. v's head_dim may differ from q's and k's. No query sees the
    keys of `empty_BS`, except that of its own position: a softmax over nothing would be NaN.
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    G = N // K
    distance_TS = torch.arange(S - T, S, device=q_BTNH.device)[:, None] - torch.arange(
        S, device=q_BTNH.device
    )
    seen_TS = torch.ones_like(distance_TS, dtype=torch.bool)
    if span.left is not None:
        seen_TS &= distance_TS <= span.left
    if span.right is not None:
        seen_TS &= distance_TS >= -span.right
    # The G query heads of a kv head lie side by side, so that keys and values need no copies.
    q_BKXH = q_BTNH.reshape(B, T, K, G, H).permute(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    k_BKSH, v_BKSH = k_BSKH.transpose(1, 2), v_BSKH.transpose(1, 2)
    seen = seen_TS  # [T, S], or [B, 1, 1, T, S]
    if empty_BS is not None:
        seen = (seen & ~empty_BS.to(seen.device)[:, None]) | (distance_TS == 0)
        seen = seen[:, None, None]
    if slopes_N is None:
        mask = seen.expand(*seen.shape[:-3], G, T, S).flatten(-3, -2)
    else:
        # torch wants the bias in q's dtype, and bfloat16 cannot hold a distance above 256.
        q_BKXH, k_BKSH, v_BKSH = q_BKXH.float(), k_BKSH.float(), v_BKSH.float()
        bias_KGTS = -slopes_N.reshape(K, G, 1, 1) * distance_TS.abs()
        mask = torch.where(seen, bias_KGTS, -torch.inf).reshape(-1, K, G * T, S)
    out_BKXH = F.scaled_dot_product_attention(
        q_BKXH, k_BKSH, v_BKSH, attn_mask=mask, dropout_p=dropout, scale=scale
    )
    out_BTNH = out_BKXH.reshape(B, K, G, T, -1).permute(0, 3, 1, 2, 4).reshape(B, T, N, -1)
    return out_BTNH.to(v_BSKH.dtype)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023); mha and mqa are its two ends.

    Query head n reads kv head n // G.
    """

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        att = cfg.attention
        linear = functools.partial(nn.Linear, bias=att.bias)
        q_dim, kv_dim = att.num_heads * att.head_dim, att.num_kv_heads * att.head_dim
        self.q_proj = linear(cfg.d_model, q_dim)
        self.k_proj = linear(cfg.d_model, kv_dim)
        self.v_proj = linear(cfg.d_model, kv_dim)
        self.out_proj = linear(q_dim, cfg.d_model)
        self.head_dim, self.dropout, self.span = att.head_dim, att.dropout, span_of(att)

    def forward(
        self, x_BTD: torch.Tensor, geometry: Geometry, cache: Cache | None = None
    ) -> torch.Tensor:
        B, T, _ = x_BTD.shape
        x_BTD = x_BTD.to(self.q_proj.weight.dtype)
        q_BTNH = apply_rope(self.q_proj(x_BTD).reshape(B, T, -1, self.head_dim), geometry)
        k_BSKH = apply_rope(self.k_proj(x_BTD).reshape(B, T, -1, self.head_dim), geometry)
        v_BSKH = self.v_proj(x_BTD).reshape(B, T, -1, self.head_dim)
        out_BTNH = attend_through(self, q_BTNH, k_BSKH, v_BSKH, geometry, cache)
        return self.out_proj(out_BTNH.reshape(B, T, -1))


class ComplexAttention(nn.Module):
    """Attention with complex queries and keys: the score is Re(q · conj(k)); v is real."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        att = cfg.attention
        linear = functools.partial(nn.Linear, bias=att.bias)
        dim = att.num_heads * att.head_dim
        self.q_re = linear(cfg.d_model, dim)
        self.q_im = linear(cfg.d_model, dim)
        self.k_re = linear(cfg.d_model, dim)
        self.k_im = linear(cfg.d_model, dim)
        self.v_proj = linear(cfg.d_model, dim)
        self.out_proj = linear(dim, cfg.d_model)
        self.head_dim, self.dropout, self.span = att.head_dim, att.dropout, span_of(att)

    def forward(
        self, x_BTD: torch.Tensor, geometry: Geometry, cache: Cache | None = None
    ) -> torch.Tensor:
        B, T, _ = x_BTD.shape
        x_BTD = x_BTD.to(self.q_re.weight.dtype)
        heads = lambda proj: proj(x_BTD).reshape(B, T, -1, self.head_dim)  # noqa: E731
        # q_re·k_re + q_im·k_im is one dot product over both parts laid side by side.
        q_BTNH = torch.cat(apply_complex_rope(heads(self.q_re), heads(self.q_im), geometry), dim=-1)
        k_BSNH = torch.cat(apply_complex_rope(heads(self.k_re), heads(self.k_im), geometry), dim=-1)
        out_BTNH = attend_through(self, q_BTNH, k_BSNH, heads(self.v_proj), geometry, cache)
        return self.out_proj(out_BTNH.reshape(B, T, -1))


def attend_through(
    layer: Attention | ComplexAttention,
    q_BTNH: torch.Tensor,
    k_BTKH: torch.Tensor,
    v_BTKH: torch.Tensor,
    geometry: Geometry,
    cache: Cache | None,
) -> torch.Tensor:
    """What the queries of a layer gather, from these keys and values and from those cached."""
    empty_BS = None
    if cache is not None:
        k_BTKH, v_BTKH = cache.extend(k_BTKH, v_BTKH)
        empty_BS = cache.empty(k_BTKH.shape[1])
    return attend(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        scale=layer.head_dim**-0.5,
        span=layer.span,
        slopes_N=geometry.slopes_N,
        empty_BS=empty_BS,
        dropout=layer.dropout if layer.training else 0.0,
    )


ATTENTION: dict[str, type[Attention] | type[ComplexAttention]] = {
    "mha": Attention,
    "gqa": Attention,
    "mqa": Attention,
    "complex": ComplexAttention,
}
