"""The frequencies of rope. The same numbers for both models; imports neither framework.

Letter: H head_dim.
"""

from __future__ import annotations

import math

import numpy as np

from light_llm.models.transformer.config import PositionalConfig, RopeScaling


def rope_frequencies(cfg: PositionalConfig, head_dim: int) -> np.ndarray:
    """Radians per position of each pair of dimensions, float32 [H / 2].

    They are computed in float64 and rounded once: one ulp of a frequency is 1e-4 rad at position
    2000. The scaling is folded in, since a compiler would multiply positions by its reciprocal.
    """
    frequencies = cfg.rope_base ** (-np.arange(0, head_dim, 2) / head_dim)
    scaling = cfg.rope_scaling
    if isinstance(scaling, RopeScaling):
        frequencies = _llama3(frequencies, scaling)
    elif scaling is not None:  # position interpolation (Chen et al. 2023)
        frequencies = frequencies / scaling
    return frequencies.astype(np.float32)


def _llama3(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Long waves divided by the factor, short ones kept, a blend between (Llama 3.1, 2024)."""
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies
