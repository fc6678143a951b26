"""The columns of a shard: what llm-preprocess writes, and what training reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

SOURCE, TEXT = "source", "text"
LENGTH = "length"
"""How many tokens a row has. Training checks its counts with it; a shard may lack it."""
TOKENS = "tokens"
"""The one column that training needs: lists of integers, of any width."""


def schema() -> pa.Schema:
    """What llm-preprocess writes."""
    import pyarrow as pa

    return pa.schema(
        {
            SOURCE: pa.string(),
            LENGTH: pa.int64(),
            TEXT: pa.string(),
            TOKENS: pa.list_(pa.int32()),
        }
    )
