"""Shards -> index -> window i -> batch, in numpy and pyarrow alone.

shards     the paths of a config -> the list of shards
footer     the footer of a parquet file: what the file holds
rowgroup   one row group -> its tokens, each checked
index      token counts per row group, and the fingerprint of a dataset
mixture    which source each window of a mixture comes from
order      the shuffled order of an epoch's windows
stream     TokenStream: window g of the endless stream
wanted     which windows of a stream a host takes, and where they go
reader     windows in the order of the steps, decoded ahead of time in threads
pools      the same, where their order is shuffled
mixed      MixedStream: several streams as one, each with its share
loader     batches of windows
overlap    whether train and validation data share shards
stats      documents, tokens and ids of shards, counted and drawn
"""

from typing import TYPE_CHECKING

from light_llm.lazy import public

if TYPE_CHECKING:
    from light_jax.data.index import describe_change
    from light_jax.data.loader import BatchLoader, validation_batches
    from light_jax.data.mixed import MixedStream
    from light_jax.data.overlap import warn_of_overlap
    from light_jax.data.stream import TokenStream

__all__ = [
    "BatchLoader",
    "MixedStream",
    "TokenStream",
    "describe_change",
    "validation_batches",
    "warn_of_overlap",
]

__getattr__, __dir__ = public(
    __name__,
    {
        "BatchLoader": "light_jax.data.loader",
        "MixedStream": "light_jax.data.mixed",
        "TokenStream": "light_jax.data.stream",
        "describe_change": "light_jax.data.index",
        "validation_batches": "light_jax.data.loader",
        "warn_of_overlap": "light_jax.data.overlap",
    },
)
