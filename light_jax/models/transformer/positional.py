"""Positional encodings: what is added to the embeddings, and what attention needs to know.

Letters: B batch, T position, N heads, H head_dim, D model. Positions are [T], or [B, T] where the
rows of a batch differ, and tables then begin with B, too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from light_jax.models.layers import Embedding
from light_llm.models.transformer.config import TransformerConfig
from light_llm.models.transformer.frequencies import rope_frequencies


class Geometry(NamedTuple):
    """What attention needs to know of positions; None where the encoding has no such part."""

    cos_TH: jax.Array | None = None
    sin_TH: jax.Array | None = None
    slopes_N: jax.Array | None = None
    back_BT: jax.Array | None = None
    """How many columns before its own each query sees, those of its document; None for all."""


class Rope(nnx.Module):
    """Rotary embedding (Su et al. 2021), halves convention."""

    def __init__(self, cfg: TransformerConfig, rngs: nnx.Rngs) -> None:
        self.cfg, self.head_dim = cfg.positional, cfg.attention.head_dim

    def __call__(self, x_BTD: jax.Array, positions_T: jax.Array) -> jax.Array:
        return x_BTD

    def geometry(self, positions_T: jax.Array) -> Geometry:
        frequencies = rope_frequencies(self.cfg, self.head_dim)
        angles = positions_T.astype(jnp.float32)[..., None] * frequencies
        angles_TH = jnp.concatenate([angles, angles], axis=-1)
        return Geometry(cos_TH=jnp.cos(angles_TH), sin_TH=jnp.sin(angles_TH))


class Alibi(nnx.Module):
    """Scores biased by -slope_n · |t - s| (Press et al. 2022)."""

    def __init__(self, cfg: TransformerConfig, rngs: nnx.Rngs) -> None:
        self.num_heads = cfg.attention.num_heads

    def __call__(self, x_BTD: jax.Array, positions_T: jax.Array) -> jax.Array:
        return x_BTD

    def geometry(self, positions_T: jax.Array) -> Geometry:
        return Geometry(slopes_N=jnp.asarray(alibi_slopes(self.num_heads)))


class Sinusoidal(nnx.Module):
    """Fixed sines (even features) and cosines (odd) are added (Vaswani et al. 2017)."""

    def __init__(self, cfg: TransformerConfig, rngs: nnx.Rngs) -> None:
        self.d_model = cfg.d_model

    def __call__(self, x_BTD: jax.Array, positions_T: jax.Array) -> jax.Array:
        freq = np.exp(np.arange(0, self.d_model, 2) * (-math.log(10000.0) / self.d_model))
        angles = positions_T.astype(jnp.float32)[..., None] * freq.astype(np.float32)
        table = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        return x_BTD + table.reshape(*positions_T.shape, -1)[..., : self.d_model]

    def geometry(self, positions_T: jax.Array) -> Geometry:
        return Geometry()


class Learned(nnx.Module):
    """A trained embedding of max_seq_len positions is added (Radford et al. 2018)."""

    def __init__(self, cfg: TransformerConfig, rngs: nnx.Rngs) -> None:
        self.emb = Embedding(cfg.max_seq_len, cfg.d_model, std=0.02, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, positions_T: jax.Array) -> jax.Array:
        return x_BTD + self.emb(positions_T)

    def geometry(self, positions_T: jax.Array) -> Geometry:
        return Geometry()


class NoPositions(nnx.Module):
    """No encoding: a causal mask alone tells positions apart (Haviv et al. 2022)."""

    def __init__(self, cfg: TransformerConfig, rngs: nnx.Rngs) -> None:
        pass

    def __call__(self, x_BTD: jax.Array, positions_T: jax.Array) -> jax.Array:
        return x_BTD

    def geometry(self, positions_T: jax.Array) -> Geometry:
        return Geometry()


Encoding = Rope | Alibi | Sinusoidal | Learned | NoPositions

POSITIONAL: dict[str, type[Encoding]] = {
    "rope": Rope,
    "alibi": Alibi,
    "sinusoidal": Sinusoidal,
    "learned": Learned,
    "none": NoPositions,
}


def rotate_half(x: jax.Array, platform: str | None = None) -> jax.Array:
    """[a, b] -> [-b, a] over the halves of the last axis."""
    if platform != "tpu":
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([-b, a], axis=-1)
    # A TPU cuts so short an axis only by copying it, where a matmul is one with what is around it
    # (medium's step with layers unrolled: 47.3 -> 42.0 GB). Each result is one product with 1 or
    # -1, so it is exact where no bit of x is dropped: a TPU multiplies in bfloat16 unless told.
    H = x.shape[-1]
    turn_HH = np.eye(H, k=H // 2) - np.eye(H, k=-H // 2)
    exact = jax.lax.Precision.DEFAULT if x.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    return jnp.matmul(x, turn_HH.astype(x.dtype), precision=exact)


def apply_rope(x_BTNH: jax.Array, geometry: Geometry, platform: str | None = None) -> jax.Array:
    """Rotate queries or keys by their positions, in their own dtype.

    Args:
        platform: on which this runs.
    """
    if geometry.cos_TH is None or geometry.sin_TH is None:
        return x_BTNH
    cos_T1H = jnp.expand_dims(geometry.cos_TH.astype(x_BTNH.dtype), -2)
    sin_T1H = jnp.expand_dims(geometry.sin_TH.astype(x_BTNH.dtype), -2)
    return x_BTNH * cos_T1H + rotate_half(x_BTNH, platform) * sin_T1H


def apply_complex_rope(
    re_BTNH: jax.Array, im_BTNH: jax.Array, geometry: Geometry
) -> tuple[jax.Array, jax.Array]:
    """(re + i·im) · e^{iθ} with the full-width table of angles θ."""
    if geometry.cos_TH is None or geometry.sin_TH is None:
        return re_BTNH, im_BTNH
    cos_T1H = jnp.expand_dims(geometry.cos_TH.astype(re_BTNH.dtype), -2)
    sin_T1H = jnp.expand_dims(geometry.sin_TH.astype(re_BTNH.dtype), -2)
    return re_BTNH * cos_T1H - im_BTNH * sin_T1H, re_BTNH * sin_T1H + im_BTNH * cos_T1H


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Slope of each head, float32 [N]."""

    def of_power_of_two(n: int) -> list[float]:
        start = 2.0 ** -(2.0 ** -(math.log2(n) - 3))
        return [start * start**i for i in range(n)]

    lower = 2 ** int(math.log2(num_heads))
    slopes = of_power_of_two(lower) + of_power_of_two(2 * lower)[0::2][: num_heads - lower]
    return np.array(slopes, np.float32)
