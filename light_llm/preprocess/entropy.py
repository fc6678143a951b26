"""How much of a text its token frequencies alone explain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from light_llm.errors import UserError
from light_llm.files.parquet import opened
from light_llm.preprocess.schema import TOKENS

if TYPE_CHECKING:
    import numpy as np


def unigram_entropy(shard_paths: str | Path | Iterable[str | Path]) -> float:
    """Entropy of the distribution of tokens in shards, in nats per token.

    It is the loss of the best model that ignores all context: a model that has learned anything
    from the order of tokens is below it.

    Args:
        shard_paths: parquet files, or folders of them.

    Raises:
        UserError: the shards hold no tokens.
    """
    import numpy as np

    counts = np.zeros(0, np.int64)
    for tokens in _token_arrays(shard_paths):
        here = np.bincount(tokens, minlength=len(counts))
        here[: len(counts)] += counts
        counts = here
    if not counts.any():
        raise UserError(f"{shard_paths}: there is no token in these shards")
    return entropy(counts)


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
                for batch in shard.file.iter_batches(columns=[TOKENS]):
                    yield batch.column(0).flatten().to_numpy()
