"""The decoder-only Transformer. Letters: B batch, T position, D model, V vocab."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from light_jax.models.layers import Embedding, dropout, einsum_float32, split_key
from light_jax.models.placement import ANYWHERE, Placement
from light_jax.models.stack import run_layers
from light_jax.models.transformer.block import Block
from light_jax.models.transformer.cache import Cache
from light_jax.models.transformer.documents import columns_back
from light_jax.models.transformer.norm import NORM
from light_jax.models.transformer.positional import POSITIONAL
from light_llm.models.transformer.config import TransformerConfig
from light_llm.models.transformer.mask import document_end_of, past_span_of


def capped(logits: jax.Array, cap: float | None) -> jax.Array:
    """cap · tanh(logits / cap), or the logits without a cap (Gemma Team 2024, Gemma 2)."""
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def _as_is(x: jax.Array) -> jax.Array:
    return x


class Transformer(nnx.Module):
    """Decoder-only Transformer; parameters float32, matmuls in `dtype`.

    >>> model = Transformer(TransformerConfig(), rngs=nnx.Rngs(0))
    >>> logits_BTV = model(tokens_BT)
    """

    def __init__(
        self,
        cfg: TransformerConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        placement: Placement = ANYWHERE,
        rngs: nnx.Rngs,
    ) -> None:
        self.cfg, self.document_end = cfg, document_end_of(cfg)
        self.dtype, self.placement = dtype, placement
        self.tok_emb = Embedding(
            cfg.vocab_size, cfg.d_model, std=cfg.init_std, rngs=rngs, lookup=placement.lookup
        )
        self.pos_emb = POSITIONAL[cfg.positional.encoding](cfg, rngs)
        self.layers = nnx.List(
            [
                Block(cfg, layer, dtype=dtype, placement=placement, rngs=rngs)
                for layer in range(cfg.num_layers)
            ]
        )
        self.final_norm = NORM[cfg.norm.type](cfg.d_model, cfg.norm.eps, placement.platform)
        self.lm_head = (
            None
            if cfg.tie_embeddings
            else Embedding(cfg.vocab_size, cfg.d_model, std=cfg.init_std, rngs=rngs)
        )

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        """Logits [B, T, V], float32, without dropout."""
        return self.logits(self.hidden(tokens_BT))

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Logits [B, T, V], float32, of final hidden states."""
        logits_BTV = einsum_float32(
            "btd,vd->btv", hidden_BTD.astype(self.dtype), self.head_VD.astype(self.dtype)
        )
        return capped(logits_BTV, self.cfg.logit_softcap)

    @property
    def head_VD(self) -> jax.Array:
        """The weight that turns final hidden states into logits (the embedding's when tied)."""
        return (self.tok_emb if self.lm_head is None else self.lm_head).weight[...]

    def hidden(
        self,
        tokens_BT: jax.Array,
        key: jax.Array | None = None,
        constrain: Callable[[jax.Array], jax.Array] = _as_is,
        cache: list[Cache] | None = None,
    ) -> jax.Array:
        """Final hidden states [B, T, D], float32, which `logits` takes.

        Args:
            key: of the dropout masks; None is evaluation.
            constrain: applied to the residual stream between layers (its sharding, in training).
            cache: of `new_cache()`; first a whole prompt joins it, then one token at a time. The
                caller keeps positions below max_seq_len.

        Raises:
            ValueError: T exceeds max_seq_len.
        """
        B, T = tokens_BT.shape
        if cache is None and self.cfg.max_seq_len < T:
            raise ValueError(f"{T} tokens exceed max_seq_len={self.cfg.max_seq_len}")
        positions_T = jnp.arange(T) if cache is None else cache[0].positions(T)
        back_BT = None if cache is None else positions_T
        if self.document_end is not None:
            if cache is None:
                zeros_B = jnp.zeros(B, positions_T.dtype)
                back_BT = columns_back(tokens_BT, self.document_end, positions_T, zeros_B)
            else:
                back_BT = cache[0].back(tokens_BT, self.document_end)
            positions_T = back_BT
        emb_key, *layer_keys = split_key(key, 1 + len(self.layers))
        x_BTD = self.pos_emb(constrain(self.tok_emb(tokens_BT)), positions_T)
        x_BTD = constrain(dropout(x_BTD, self.cfg.dropout, emb_key))
        geometry = self.pos_emb.geometry(positions_T)._replace(back_BT=back_BT)
        if cache is not None:
            for layer, layer_cache in zip(self.layers, cache, strict=True):
                x_BTD = layer(x_BTD, geometry, None, layer_cache)
            return self.final_norm(x_BTD)
        x_BTD = run_layers(
            self.layers,
            x_BTD,
            geometry,
            layer_keys,
            recompute=self.cfg.gradient_checkpointing,
            dtype=self.dtype,
            placement=self.placement,
            constrain=constrain,
        )
        return self.final_norm(x_BTD)

    def new_cache(self, size: int, pad_B: jax.Array) -> list[Cache]:
        """An empty cache, one entry per layer, for decoding a token at a time.

        Args:
            size: how many columns, padding included, there will be at most.
            pad_B: how many of the first columns of each row are padding: prompts of different
                lengths end together.

        Raises:
            UserError: bidirectional attention, where each new token changes all earlier ones.
        """
        attention = self.cfg.attention
        return [Cache(past_span_of(attention, n), size, pad_B) for n in range(len(self.layers))]
