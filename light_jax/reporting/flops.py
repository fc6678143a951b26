"""Model flops utilisation: the share of the device's peak that the model's own arithmetic takes."""

from __future__ import annotations

import jax

from light_llm.models.transformer.config import TransformerConfig

# Dense bfloat16 peak of one device in flop/s, from the makers' datasheets, by `device_kind`.
PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Peak of one device, None where it is not known (a CPU)."""
    for kind, peak in PEAK_FLOPS.items():
        if device.device_kind.startswith(kind):
            return peak
    return None


def flops_per_token(cfg: TransformerConfig, num_params: int, seq_len: int) -> float:
    """Forward and backward: 6 per weight of a matmul, 12·L·N·H·T for scores (PaLM, appendix B)."""
    embeddings = 0 if cfg.tie_embeddings else cfg.vocab_size * cfg.d_model
    scores = 18.0 if cfg.attention.variant == "complex" else 12.0  # its q·k is twice as wide
    attention = cfg.num_layers * cfg.attention.num_heads * cfg.attention.head_dim * seq_len
    return 6.0 * (num_params - embeddings) + scores * attention
