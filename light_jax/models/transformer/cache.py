"""The keys and values of earlier tokens, with which a model runs a token at a time.

Letters: B batch, T column of a prompt, R row of the buffers, K kv-heads, H head_dim.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from light_jax.models.transformer.documents import columns_back
from light_llm.models.transformer.mask import Span


@jax.tree_util.register_dataclass
@dataclass
class Cache:
    """One layer's keys (rotated) and values so far: first a prompt's, then those of one token each.

    The column c of a batch lies in row c mod R of the buffers; R is at most what a window shows.
    A function under jit takes and returns it; in between, its fields change as PyTorch's do.
    """

    span: Span = field(metadata={"static": True})
    size: int = field(metadata={"static": True})  # columns that there will be at most
    pad_B: jax.Array  # columns that stand empty before each row's first token
    length: jax.Array | int = 0  # columns so far
    k_BKRH: jax.Array | None = None
    v_BKRH: jax.Array | None = None
    first_B: jax.Array | None = None  # where the next token's document begins, if one ended

    def positions(self, T: int) -> jax.Array:
        """Positions of the next T columns, [B, T]; 0 where a row stands empty."""
        return jnp.maximum(self.length + jnp.arange(T) - self.pad_B[:, None], 0)

    def back(self, tokens_BT: jax.Array, end: int) -> jax.Array:
        """`columns_back` of the next T tokens, which are remembered for those after them."""
        T = tokens_BT.shape[1]
        columns_T = self.length + jnp.arange(T)
        first_B = self.pad_B if self.first_B is None else self.first_B
        back_BT = columns_back(tokens_BT, end, columns_T, first_B)
        ended_B = tokens_BT[:, -1] == end
        self.first_B = jnp.where(ended_B, self.length + T, columns_T[-1] - back_BT[:, -1])
        return back_BT

    def fill(self, k_BTKH: jax.Array, v_BTKH: jax.Array) -> None:
        """Begin with the T columns of a prompt."""
        T, left = k_BTKH.shape[1], self.span.left
        R = self.size if left is None else min(self.size, left + 1)
        column_R = (T - 1) - (T - 1 - np.arange(R)) % R  # the last column that belongs in each row
        self.k_BKRH, self.v_BKRH = (
            jnp.where((column_R >= 0)[:, None], x.transpose(0, 2, 1, 3)[:, :, column_R], 0)
            for x in (k_BTKH, v_BTKH)
        )
        self.length = jnp.int32(T)

    def extend(
        self, k_B1KH: jax.Array, v_B1KH: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Append one column; returns all keys and values, and how far back [R] each row lies."""
        assert self.k_BKRH is not None
        assert self.v_BKRH is not None
        R = self.k_BKRH.shape[2]
        row = self.length % R
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=row, axis=2)
        self.k_BKRH = put(self.k_BKRH, k_B1KH.transpose(0, 2, 1, 3))
        self.v_BKRH = put(self.v_BKRH, v_B1KH.transpose(0, 2, 1, 3))
        self.length = self.length + 1
        return self.k_BKRH, self.v_BKRH, (row - jnp.arange(R)) % R
