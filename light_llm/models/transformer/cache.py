"""The keys and values of earlier tokens, so that a model can run a few tokens at a time.

Letters: B batch, T new column, S column so far, K kv-heads, H head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from light_llm.models.transformer.documents import columns_back
from light_llm.models.transformer.mask import Span


@dataclass
class Cache:
    """One layer's keys (rotated) and values so far, for queries that come a few at a time.

    Rows after `filled` are free: appending to a tensor would copy it each time.
    """

    span: Span
    pad_B: torch.Tensor | None = None  # empty columns before each row's first token
    first_B: torch.Tensor | None = None  # where the next token's document begins, if one ended
    length: int = 0  # columns so far, including those no longer in the buffers
    filled: int = 0
    k_BSKH: torch.Tensor | None = None
    v_BSKH: torch.Tensor | None = None

    def positions(self, T: int) -> torch.Tensor:
        """Positions of the next T columns, [T] or [B, T]; 0 where a row is padding."""
        columns_T = torch.arange(self.length, self.length + T)
        if self.pad_B is None:
            return columns_T
        return (columns_T - self.pad_B[:, None]).clamp(min=0)

    def back(self, tokens_BT: torch.Tensor, end: int) -> torch.Tensor:
        """`columns_back` of the next T tokens, which are remembered for those after them."""
        B, T = tokens_BT.shape
        columns_T = torch.arange(self.length, self.length + T, device=tokens_BT.device)
        first_B = columns_T.new_zeros(B) if self.first_B is None else self.first_B
        if self.pad_B is not None:
            first_B = torch.maximum(first_B, self.pad_B.to(first_B))
        back_BT = columns_back(tokens_BT, end, columns_T, first_B)
        ended_B = tokens_BT[:, -1] == end
        stop = self.length + T
        self.first_B = torch.where(ended_B, stop, columns_T[-1] - back_BT[:, -1])
        return back_BT

    def empty(self, S: int) -> torch.Tensor | None:
        """Whether each of the last S columns is padding, [B, S]; None without padding."""
        if self.pad_B is None:
            return None
        return torch.arange(self.length - S, self.length) < self.pad_B[:, None]

    def extend(
        self, k_BTKH: torch.Tensor, v_BTKH: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append T columns; returns all keys and values [B, S, K, H] that their queries see."""
        T = k_BTKH.shape[1]
        kept = self._visible()
        rows = kept.stop - kept.start + T
        room = 0 if self.k_BSKH is None else self.k_BSKH.shape[1]
        # allocated again when it is full, or when a window needs much less than a long prompt did
        if self.k_BSKH is None or self.v_BSKH is None or not self.filled + T <= room <= 2 * rows:
            self.k_BSKH = _with_room(self.k_BSKH, k_BTKH, kept)
            self.v_BSKH = _with_room(self.v_BSKH, v_BTKH, kept)
            self.filled = kept.stop - kept.start
        start, stop = self._visible().start, self.filled + T
        self.k_BSKH[:, self.filled : stop] = k_BTKH
        self.v_BSKH[:, self.filled : stop] = v_BTKH
        self.filled, self.length = stop, self.length + T
        return self.k_BSKH[:, start:stop], self.v_BSKH[:, start:stop]

    def _visible(self) -> slice:
        """The rows that the next query still sees."""
        left = self.span.left
        return slice(0 if left is None else max(0, self.filled - left), self.filled)


def _with_room(old_BSKH: torch.Tensor | None, new_BTKH: torch.Tensor, kept: slice) -> torch.Tensor:
    """A buffer with the kept rows and room for twice as many as the kept and the new ones."""
    B, T, K, H = new_BTKH.shape
    rows = kept.stop - kept.start
    buffer_BKSH = new_BTKH.new_empty(B, K, 2 * (rows + T), H)  # a head's rows lie together
    buffer_BSKH = buffer_BKSH.transpose(1, 2)
    if old_BSKH is not None:
        buffer_BSKH[:, :rows] = old_BSKH[:, kept]
    return buffer_BSKH
