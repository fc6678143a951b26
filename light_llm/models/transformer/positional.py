"""Positional encodings: what is added to the embeddings, and what attention needs to know.

Letters: B batch, T position, N heads, H head_dim, D model. Positions are [T], or [B, T] if the
rows of a batch differ; tables then begin with B too. Tables are computed where they are used
and never saved.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from light_llm.models.transformer.config import TransformerConfig
from light_llm.models.transformer.frequencies import rope_frequencies


class Geometry(NamedTuple):
    """What attention needs to know of positions; None where the encoding has no such part."""

    cos_TH: torch.Tensor | None = None
    sin_TH: torch.Tensor | None = None
    slopes_N: torch.Tensor | None = None
    back_BT: torch.Tensor | None = None
    """How many columns before its own each query sees, those of its document; None for all."""


class Rope(nn.Module):
    """Rotary embedding (Su et al. 2021), halves convention."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.cfg, self.head_dim = cfg.positional, cfg.attention.head_dim

    def forward(self, x_BTD: torch.Tensor, positions_T: torch.Tensor) -> torch.Tensor:
        return x_BTD

    def geometry(self, positions_T: torch.Tensor) -> Geometry:
        frequencies = torch.from_numpy(rope_frequencies(self.cfg, self.head_dim))
        angles = positions_T.float()[..., None] * frequencies.to(positions_T.device)
        angles_TH = torch.cat([angles, angles], dim=-1)
        return Geometry(cos_TH=angles_TH.cos(), sin_TH=angles_TH.sin())


class Alibi(nn.Module):
    """Scores biased by -slope_n · |t - s| (Press et al. 2022)."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = cfg.attention.num_heads

    def forward(self, x_BTD: torch.Tensor, positions_T: torch.Tensor) -> torch.Tensor:
        return x_BTD

    def geometry(self, positions_T: torch.Tensor) -> Geometry:
        return Geometry(slopes_N=alibi_slopes(self.num_heads).to(positions_T.device))


class Sinusoidal(nn.Module):
    """Fixed sines (even features) and cosines (odd) are added (Vaswani et al. 2017)."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.d_model = cfg.d_model

    def forward(self, x_BTD: torch.Tensor, positions_T: torch.Tensor) -> torch.Tensor:
        even = torch.arange(0, self.d_model, 2, dtype=torch.float64, device="cpu")
        freq = torch.exp(even * (-math.log(10000.0) / self.d_model))
        angles = positions_T.float()[..., None] * freq.float().to(positions_T.device)
        table = torch.stack([angles.sin(), angles.cos()], dim=-1)
        return x_BTD + table.flatten(-2)[..., : self.d_model]

    def geometry(self, positions_T: torch.Tensor) -> Geometry:
        return Geometry()


class Learned(nn.Module):
    """A trained embedding of max_seq_len positions is added (Radford et al. 2018)."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.emb = nn.Embedding(cfg.max_seq_len, cfg.d_model)

    def forward(self, x_BTD: torch.Tensor, positions_T: torch.Tensor) -> torch.Tensor:
        return x_BTD + self.emb(positions_T).float()

    def geometry(self, positions_T: torch.Tensor) -> Geometry:
        return Geometry()


class NoPositions(nn.Module):
    """No encoding: a causal mask is enough to distinguish positions (Haviv et al. 2022)."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()

    def forward(self, x_BTD: torch.Tensor, positions_T: torch.Tensor) -> torch.Tensor:
        return x_BTD

    def geometry(self, positions_T: torch.Tensor) -> Geometry:
        return Geometry()


Encoding = Rope | Alibi | Sinusoidal | Learned | NoPositions

POSITIONAL: dict[str, type[Encoding]] = {
    "rope": Rope,
    "alibi": Alibi,
    "sinusoidal": Sinusoidal,
    "learned": Learned,
    "none": NoPositions,
}


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """[a, b] -> [-b, a] over the halves of the last axis."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-b, a], dim=-1)


def apply_rope(x_BTNH: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Rotate queries or keys by their positions, in their own dtype."""
    if geometry.cos_TH is None or geometry.sin_TH is None:
        return x_BTNH
    cos_T1H = geometry.cos_TH.to(x_BTNH.dtype).unsqueeze(-2)
    sin_T1H = geometry.sin_TH.to(x_BTNH.dtype).unsqueeze(-2)
    return x_BTNH * cos_T1H + rotate_half(x_BTNH) * sin_T1H


def apply_complex_rope(
    re_BTNH: torch.Tensor, im_BTNH: torch.Tensor, geometry: Geometry
) -> tuple[torch.Tensor, torch.Tensor]:
    """(re + i·im) · e^{iθ} with the full-width table of angles θ."""
    if geometry.cos_TH is None or geometry.sin_TH is None:
        return re_BTNH, im_BTNH
    cos_T1H = geometry.cos_TH.to(re_BTNH.dtype).unsqueeze(-2)
    sin_T1H = geometry.sin_TH.to(re_BTNH.dtype).unsqueeze(-2)
    return re_BTNH * cos_T1H - im_BTNH * sin_T1H, re_BTNH * sin_T1H + im_BTNH * cos_T1H


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """Slope of each head, float32 [N]."""

    def of_power_of_two(n: int) -> list[float]:
        start = 2.0 ** -(2.0 ** -(math.log2(n) - 3))
        return [start * start**i for i in range(n)]

    lower = 2 ** int(math.log2(num_heads))
    slopes = of_power_of_two(lower) + of_power_of_two(2 * lower)[0::2][: num_heads - lower]
    return torch.tensor(slopes, dtype=torch.float32)
