"""Model flops utilisation: the share of the devices' peak that the model's own arithmetic takes.

Two counts of that arithmetic have names. `mfu` takes attention as if each query saw every key, as
PaLM's does, by which most figures are published. `mfu_masked` takes what the mask shows: half of
it if causal, a window's share if it slides.
"""

from __future__ import annotations

from collections import Counter

import jax

from light_jax.parallel.targets import device_of
from light_llm.models.transformer.config import TransformerConfig
from light_llm.models.transformer.mask import span_of


def peak_flops(device: jax.Device) -> float | None:
    """Dense bfloat16 peak of one device, FLOP/s; None where it is not known (a CPU)."""
    known = device_of(device.device_kind)
    return None if known is None else known.peak_flops


def flops_per_token(
    cfg: TransformerConfig, num_params: int, seq_len: int, share_of_scores: float = 1.0
) -> float:
    """Forward and backward: 6 per weight of a matmul, 12·L·N·H·T for scores (PaLM, appendix B).

    Args:
        share_of_scores: the part of the scores that counts; `share_seen` for what the mask shows.
    """
    embeddings = 0 if cfg.tie_embeddings else cfg.vocab_size * cfg.d_model
    scores = 18.0 if cfg.attention.variant == "complex" else 12.0  # its q·k is twice as wide
    attention = cfg.num_layers * cfg.attention.num_heads * cfg.attention.head_dim * seq_len
    return 6.0 * (num_params - embeddings) + scores * attention * share_of_scores


def share_seen(cfg: TransformerConfig, seq_len: int) -> float:
    """The share of the pairs of a query and a key that the masks of the layers show; (T + 1) / 2T
    if causal. Documents do not count."""
    last, total = seq_len - 1, 0
    spans = Counter(span_of(cfg.attention, layer) for layer in range(cfg.num_layers))
    for span, layers in spans.items():
        left = last if span.left is None else min(span.left, last)
        right = last if span.right is None else min(span.right, last)
        total += layers * sum(min(t, left) + 1 + min(last - t, right) for t in range(seq_len))
    return total / (cfg.num_layers * seq_len**2)


def utilisation(
    cfg: TransformerConfig, num_params: int, seq_len: int, peak: float | None
) -> dict[str, float]:
    """What a token a second adds to each figure, by name; nothing where the peak is not known.

    Args:
        peak: of all devices together, FLOP/s.
    """
    if peak is None:
        return {}
    shares = {"mfu": 1.0, "mfu_masked": share_seen(cfg, seq_len)}
    return {
        name: flops_per_token(cfg, num_params, seq_len, share) / peak
        for name, share in shares.items()
    }
