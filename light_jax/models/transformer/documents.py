"""Documents that lie one behind another in the rows of a batch.

Letters: B batch, T column.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def columns_back(
    tokens_BT: jax.Array, end: int, columns_T: jax.Array, first_B: jax.Array
) -> jax.Array:
    """How many columns of its document lie before each token, [B, T]: its position in it.

    The token after an end mark begins a document; the mark belongs to the document that it ends.

    Args:
        end: the id of the mark.
        columns_T: the columns of the tokens in their rows, which tokens before them may begin.
        first_B: in which column the first token's document begins. Tokens before it get 0.
    """
    begins_BT = jnp.pad(tokens_BT[:, :-1] == end, ((0, 0), (1, 0)))
    first_BT = jax.lax.cummax(jnp.where(begins_BT, columns_T, first_B[:, None]), axis=1)
    return jnp.maximum(columns_T - first_BT, 0)
