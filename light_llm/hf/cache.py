"""The cache of transformers as our layers ask for one, so that beams can reorder it and so on.

Letters: B batch, T new column, S column so far, K kv-heads, H head_dim.
"""

from __future__ import annotations

import torch
from transformers import Cache as Store

from light_llm.models.transformer.documents import columns_back


class LayerView:
    """Stands where a layer expects `light_llm.models.transformer.cache.Cache`.

    Args:
        store: keeps keys and values of all layers as [B, K, S, H]; None where none are kept.
        layer: the number of this layer.
        past: columns that the store holds already.
        real_BS: whether each column, old and new, holds a token; None where all do.
    """

    def __init__(
        self, store: Store | None, layer: int, past: int, real_BS: torch.Tensor | None
    ) -> None:
        self.store, self.layer, self.past, self.real_BS = store, layer, past, real_BS

    def positions(self, T: int) -> torch.Tensor:
        """Positions of the next T columns, [T] or [B, T]; padding has no place among them."""
        if self.real_BS is None:
            return torch.arange(self.past, self.past + T)
        return (self.real_BS.cumsum(dim=-1) - 1).clamp(min=0)[:, self.past :]

    def back(self, tokens_BT: torch.Tensor, end: int) -> torch.Tensor:
        """How many columns of its document lie before each token, [B, T].

        Raises:
            ValueError: there is padding between the tokens of a row.
        """
        B, T = tokens_BT.shape
        columns_T, first_B = torch.arange(T, device=tokens_BT.device), tokens_BT.new_zeros(B)
        assert self.store is None, "keys and values are kept, but no documents"
        if self.real_BS is not None:
            first_B = self.real_BS.int().argmax(dim=-1).to(first_B)
            if bool((self.real_BS.sum(dim=-1) + first_B != _last(self.real_BS) + 1).any()):
                raise ValueError(
                    "attention_mask has padding between tokens, which attention.document_mask "
                    "does not take; pad at the start or the end of rows"
                )
        return columns_back(tokens_BT, end, columns_T, first_B)

    def empty(self, S: int) -> torch.Tensor | None:
        """Whether each of the S columns is padding, [B, S]; None without padding."""
        return None if self.real_BS is None else ~self.real_BS

    def extend(
        self, k_BTKH: torch.Tensor, v_BTKH: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append T columns; returns all keys and values [B, S, K, H] so far.

        Raises:
            ValueError: the store is of a kind that gives back other columns than it was given.
        """
        if self.store is None:
            return k_BTKH, v_BTKH
        k_BKSH, v_BKSH = self.store.update(
            k_BTKH.transpose(1, 2), v_BTKH.transpose(1, 2), self.layer
        )
        if k_BKSH.shape[2] != self.past + k_BTKH.shape[1]:
            raise ValueError(
                f"a {type(self.store).__name__} keeps columns of a fixed number, which this model "
                "cannot use; use a DynamicCache, or leave cache_implementation out"
            )
        return k_BKSH.transpose(1, 2), v_BKSH.transpose(1, 2)


def _last(real_BS: torch.Tensor) -> torch.Tensor:
    """The last column of each row that holds a token, [B]."""
    return real_BS.shape[1] - 1 - real_BS.int().flip(-1).argmax(dim=-1)


def views(
    store: Store | None, layers: int, columns: int, mask_BS: torch.Tensor | None, is_causal: bool
) -> list[LayerView] | None:
    """What `Transformer.hidden` takes as its cache; None where it needs none.

    Args:
        columns: the number of new ones.
        mask_BS: `attention_mask` of transformers, over old and new columns: 0 is padding.
        is_causal: whether no query sees later keys. Then padding at the end of rows changes
            nothing for their tokens, so that it needs no mask.

    Raises:
        ValueError: a mask of another shape.
    """
    past = 0 if store is None else store.get_seq_length()
    real_BS = None
    if mask_BS is not None:
        if mask_BS.dim() != 2 or mask_BS.shape[1] != past + columns:
            raise ValueError(
                f"attention_mask has shape {list(mask_BS.shape)}; it must be [batch, "
                f"{past + columns}], with a column for each token, cached ones included"
            )
        real_BS = mask_BS.bool()
        at_the_end = is_causal and store is None and bool((real_BS[:, 1:] <= real_BS[:, :-1]).all())
        if at_the_end or bool(real_BS.all()):
            real_BS = None
    if store is None and real_BS is None:
        return None
    return [LayerView(store, layer, past, real_BS) for layer in range(layers)]
