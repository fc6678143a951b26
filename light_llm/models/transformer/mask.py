"""Masks: which keys a query sees. The same numbers for both models; imports neither framework."""

from __future__ import annotations

from typing import NamedTuple

from light_llm.errors import UserError
from light_llm.models.transformer.config import AttentionConfig, TransformerConfig


class Span(NamedTuple):
    """Query t sees the keys t - left <= s <= t + right; None is unbounded."""

    left: int | None
    right: int | None


MASK = {
    "causal": lambda cfg: Span(left=None, right=0),
    "bidirectional": lambda cfg: Span(left=None, right=None),
    "sliding_window": lambda cfg: Span(left=cfg.window_size, right=0),
}


def span_of(cfg: AttentionConfig, layer: int = 0) -> Span:
    """The keys that a query sees in that layer, from 0."""
    if cfg.window_pattern is not None:
        return Span(left=cfg.window_pattern[layer % len(cfg.window_pattern)], right=0)
    return MASK[cfg.mask_type](cfg)


def past_span_of(cfg: AttentionConfig, layer: int = 0) -> Span:
    """`span_of` for a model that writes text token by token.

    Raises:
        UserError: the mask shows the future, so that each new token would change all earlier ones.
    """
    span = span_of(cfg, layer)
    if span.right != 0:
        raise UserError(
            f"model.attention.mask_type={cfg.mask_type!r} sees the future, so "
            f"the model cannot write text token by token; use 'causal' or 'sliding_window'"
        )
    return span


def document_end_of(cfg: TransformerConfig) -> int | None:
    """The id that ends a document, within which attention stays; None without document_mask.

    Raises:
        UserError: no id is known, or the model has no row for it.
    """
    attention = cfg.attention
    if not attention.document_mask:
        return None
    end = attention.document_end
    if end is None:
        raise UserError(
            "model.attention.document_mask=True needs the id of the token that ends a document, "
            "which a run takes from the tokenizer of train_data, and none is known; set "
            "model.attention.document_end to it, or make the shards with a tokenizer that has one"
        )
    if end >= cfg.vocab_size:
        raise UserError(
            f"model.attention.document_end={end} must be below model.vocab_size={cfg.vocab_size}; "
            "use the id of the tokenizer's end-of-text token"
        )
    return end
