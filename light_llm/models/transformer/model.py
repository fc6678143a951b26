"""The decoder-only Transformer. Letters: B batch, T position, D model, V vocab."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from light_llm.models.transformer.block import Block
from light_llm.models.transformer.cache import Cache
from light_llm.models.transformer.config import TransformerConfig
from light_llm.models.transformer.documents import columns_back
from light_llm.models.transformer.mask import document_end_of, past_span_of
from light_llm.models.transformer.norm import NORM
from light_llm.models.transformer.positional import POSITIONAL, Geometry

MATMULS = ("mm", "addmm", "bmm", "baddbmm")  # as aten names them
WRITES_TO_RESIDUAL = ("out_proj.weight", "down_proj.weight", "fc2.weight")


def capped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """cap · tanh(logits / cap), or the logits without a cap (Gemma Team 2024, Gemma 2)."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


class Transformer(nn.Module):
    """Decoder-only Transformer; matmuls in the weights' dtype, which `.to(dtype)` sets.

    A strict `load_state_dict` takes a checkpoint's weights file. With tied embeddings its
    `lm_head.weight` may be absent, and one that differs from `tok_emb.weight` is an error.

    >>> model = Transformer(TransformerConfig())
    >>> logits_BTV = model(tokens_BT)
    """

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.cfg, self.document_end = cfg, document_end_of(cfg)
        self.tok_emb = nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.pos_emb = POSITIONAL[cfg.positional.encoding](cfg)
        self.layers = nn.ModuleList([Block(cfg, layer) for layer in range(cfg.num_layers)])
        self.final_norm = NORM[cfg.norm.type](cfg.d_model, cfg.norm.eps)
        self.lm_head = nn.Linear(cfg.d_model, cfg.vocab_size, bias=False)
        if cfg.tie_embeddings:
            _tie(self)
            self.register_load_state_dict_pre_hook(_check_tied_head)
            self.register_load_state_dict_post_hook(_tie)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise every parameter again from torch's global random state."""
        cfg = self.cfg
        for name, parameter in self.named_parameters():
            if "norm" in name:
                nn.init.ones_(parameter)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif name.startswith("pos_emb."):
                nn.init.normal_(parameter, std=0.02)
            else:
                residual = name.endswith(WRITES_TO_RESIDUAL)
                nn.init.normal_(parameter, std=cfg.residual_init_std if residual else cfg.init_std)

    def forward(self, tokens_BT: torch.Tensor, cache: list[Cache] | None = None) -> torch.Tensor:
        """Logits [B, T, V], float32. See `hidden`."""
        return self.logits(self.hidden(tokens_BT, cache))

    def logits(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """Logits [B, T, V], float32, of final hidden states."""
        logits_BTV = self.lm_head(hidden_BTD.to(self.lm_head.weight.dtype)).float()
        return capped(logits_BTV, self.cfg.logit_softcap)

    def hidden(self, tokens_BT: torch.Tensor, cache: list[Cache] | None = None) -> torch.Tensor:
        """Final hidden states [B, T, D], float32, which `logits` takes.

        Args:
            cache: from `new_cache()`; the tokens continue those in it, and are added to it.

        Raises:
            ValueError: the tokens, cached ones included, exceed max_seq_len.
        """
        B, T = tokens_BT.shape
        positions_T = cache[0].positions(T) if cache else torch.arange(T)
        length = int(positions_T.max()) + 1 if cache else T
        if self.cfg.max_seq_len < length:
            raise ValueError(f"{length} tokens exceed max_seq_len={self.cfg.max_seq_len}")
        positions_T, back_BT = positions_T.to(tokens_BT.device), None
        if self.document_end is not None:
            if cache:
                back_BT = cache[0].back(tokens_BT, self.document_end)
            else:
                zeros_B = positions_T.new_zeros(B)
                back_BT = columns_back(tokens_BT, self.document_end, positions_T, zeros_B)
            positions_T = back_BT
        x_BTD = self.pos_emb(self.tok_emb(tokens_BT).float(), positions_T)
        x_BTD = F.dropout(x_BTD, self.cfg.dropout, self.training)
        geometry = self.pos_emb.geometry(positions_T)._replace(back_BT=back_BT)
        caches: Sequence[Cache | None] = cache or [None] * len(self.layers)
        for layer, layer_cache in zip(self.layers, caches, strict=True):
            x_BTD = self._run(layer, x_BTD, geometry, layer_cache)
        return self.final_norm(x_BTD)

    def _run(
        self, layer: nn.Module, x_BTD: torch.Tensor, geometry: Geometry, cache: Cache | None
    ) -> torch.Tensor:
        if cache is not None or not (self.cfg.gradient_checkpointing and self.training):
            return layer(x_BTD, geometry, cache)
        kept = noop_context_fn if self.cfg.gradient_checkpointing is True else _keeping_matmuls
        return checkpoint(layer, x_BTD, geometry, use_reentrant=False, context_fn=kept)

    def new_cache(self, pad_B: torch.Tensor | None = None) -> list[Cache]:
        """An empty cache, one entry per layer, for decoding a few tokens at a time.

        Args:
            pad_B: padding columns at the start of each row, since prompts of different lengths end
                together.

        Raises:
            UserError: bidirectional attention, where each new token changes all earlier ones.
        """
        attention = self.cfg.attention
        return [Cache(past_span_of(attention, n), pad_B) for n in range(len(self.layers))]


def _keeping_matmuls() -> Any:
    """Gradient checkpointing that computes again all but the matmuls and attention."""
    return create_selective_checkpoint_contexts(
        lambda _, op, *args, **kwargs: (
            CheckpointPolicy.MUST_SAVE
            if op.overloadpacket.__name__ in MATMULS or "attention" in op.overloadpacket.__name__
            else CheckpointPolicy.PREFER_RECOMPUTE
        )
    )


def _tie(model: Transformer, *_: Any) -> None:
    # again after loading: `assign=True` gives each module its own parameter
    model.lm_head.weight = model.tok_emb.weight


def _check_tied_head(
    model: Transformer,
    state_dict: dict[str, torch.Tensor],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    emb, head = (state_dict.get(prefix + key) for key in ("tok_emb.weight", "lm_head.weight"))
    if emb is None:
        return  # torch reports it as missing
    if head is None:
        state_dict[f"{prefix}lm_head.weight"] = emb
    elif not torch.allclose(head.to(emb), emb, rtol=0, atol=0, equal_nan=True):
        error_msgs.append(
            f"{prefix}lm_head.weight differs from {prefix}tok_emb.weight, which "
            f"tie_embeddings=true forbids; set it to false or leave lm_head.weight out"
        )
