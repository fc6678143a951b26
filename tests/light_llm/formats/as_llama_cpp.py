"""A GGUF file's forward pass, from nothing but the file, the way that llama.cpp computes it.

Letters: T position, N heads, K kv-heads, H head_dim, D model, V vocab.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize


class Model:
    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self.keys = {name: field.contents() for name, field in reader.fields.items()}
        self.tensors = {t.name: dequantize(t.data, t.tensor_type) for t in reader.tensors}
        self.types = {t.name: t.tensor_type.name for t in reader.tensors}
        self.architecture = self.keys["general.architecture"]

    def __getitem__(self, key: str):
        """A key of the architecture: `block_count` is llama.block_count."""
        return self.keys[f"{self.architecture}.{key}"]

    def logits(self, tokens_T: np.ndarray) -> np.ndarray:
        """Logits [T, V] in float64 but for the weights."""
        x_TD = self.tensors["token_embd.weight"][tokens_T].astype(np.float64)
        for i in range(self["block_count"]):
            x_TD = x_TD + self._attention(self._norm(x_TD, f"blk.{i}.attn_norm"), f"blk.{i}")
            h_TD = self._norm(x_TD, f"blk.{i}.ffn_norm")
            gate = self._linear(h_TD, f"blk.{i}.ffn_gate")
            hidden = gate / (1 + np.exp(-gate)) * self._linear(h_TD, f"blk.{i}.ffn_up")
            x_TD = x_TD + self._linear(hidden, f"blk.{i}.ffn_down")
        x_TD = self._norm(x_TD, "output_norm")
        return self._linear(x_TD, "output" if "output.weight" in self.tensors else "token_embd")

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        y = x @ self.tensors[f"{name}.weight"].astype(np.float64).T
        return y + self.tensors.get(f"{name}.bias", 0)

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        mean = (x * x).mean(-1, keepdims=True) + self["attention.layer_norm_rms_epsilon"]
        return x / np.sqrt(mean) * self.tensors[f"{name}.weight"]

    def _attention(self, x_TD: np.ndarray, layer: str) -> np.ndarray:
        T, N, K = len(x_TD), self["attention.head_count"], self["attention.head_count_kv"]

        def heads(name: str, count: int) -> np.ndarray:
            return self._linear(x_TD, f"{layer}.{name}").reshape(T, count, -1)

        q_TNH, k_TKH, v_TKH = heads("attn_q", N), heads("attn_k", K), heads("attn_v", K)
        if self.architecture == "qwen3":
            q_TNH = self._norm(q_TNH, f"{layer}.attn_q_norm")
            k_TKH = self._norm(k_TKH, f"{layer}.attn_k_norm")
        q_TNH, k_TNH = self._rope(q_TNH), np.repeat(self._rope(k_TKH), N // K, axis=1)
        scores = np.einsum("tnh,snh->nts", q_TNH, k_TNH) / np.sqrt(q_TNH.shape[-1])
        scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        out_TNH = np.einsum("nts,snh->tnh", p, np.repeat(v_TKH, N // K, axis=1))
        return self._linear(out_TNH.reshape(T, -1), f"{layer}.attn_output")

    def _rope(self, x_TNH: np.ndarray) -> np.ndarray:
        """NORM turns neighbours (arch llama), NEOX turns halves (the qwens)."""
        T, _, H = x_TNH.shape
        assert self["rope.dimension_count"] == H == self["attention.key_length"]
        frequencies = self["rope.freq_base"] ** (-np.arange(0, H, 2) / H)
        frequencies = frequencies / self.tensors.get("rope_freqs.weight", 1)
        if self.keys.get(f"{self.architecture}.rope.scaling.type") == "linear":
            frequencies = frequencies / self["rope.scaling.factor"]
        turn = np.exp(1j * np.arange(T)[:, None, None] * frequencies)
        if self.architecture == "llama":
            turned = (x_TNH[..., 0::2] + 1j * x_TNH[..., 1::2]) * turn
            return np.stack([turned.real, turned.imag], axis=-1).reshape(x_TNH.shape)
        turned = (x_TNH[..., : H // 2] + 1j * x_TNH[..., H // 2 :]) * turn
        return np.concatenate([turned.real, turned.imag], axis=-1)
