"""How much of a text its token frequencies alone explain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from light_llm.errors import UserError
from light_llm.files.arrow import numbers
from light_llm.files.parquet import opened
from light_llm.preprocess.schema import TOKENS

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def unigram_entropy(shard_paths: str | Path | Iterable[str | Path]) -> float:
    """Entropy of the distribution of tokens in shards, in nats per token.

    It is the loss of the best model that ignores all context: a model that has learned anything
    from the order of tokens is below it.

    Args:
        shard_paths: parquet files, or folders of them.

    Raises:
        UserError: the shards hold no tokens, or one cannot be read.
    """
    import numpy as np

    counts: Counter[int] = Counter()
    for tokens in _token_arrays(shard_paths):
        values, times = np.unique(tokens, return_counts=True)
        counts.update(dict(zip(values.tolist(), times.tolist(), strict=True)))
    if not counts:
        raise UserError(f"{shard_paths}: there is no token in these shards")
    return entropy(np.array([counts[token] for token in sorted(counts)]))


def entropy(counts: np.ndarray) -> float:
    """Entropy in nats of the distribution with these counts, int [n]; 0 if all are 0."""
    import numpy as np

    share = counts[counts > 0] / max(1, counts.sum())
    return float(-(share * np.log(share)).sum())


def _token_arrays(shard_paths: str | Path | Iterable[str | Path]) -> Iterator[np.ndarray]:
    several = [shard_paths] if isinstance(shard_paths, str | Path) else shard_paths
    for path in map(Path, several):
        for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
            if not file.is_file():
                raise UserError(f"{file}: there is no such shard (looked from {Path.cwd()})")
            with opened(file, TOKENS) as shard:
                if not _holds_ids(shard.file.schema_arrow):
                    raise UserError(f"{file}: is not a shard: {TOKENS!r} is no column of integers")
                for batch in shard.batches(TOKENS):
                    yield numbers(batch.column(0).flatten().drop_null())


def _holds_ids(schema: pa.Schema) -> bool:
    import pyarrow as pa

    kind = schema.field(TOKENS).type if schema.names.count(TOKENS) == 1 else pa.null()
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    lists = lists or pa.types.is_fixed_size_list(kind)
    return lists and pa.types.is_integer(kind.value_type)
