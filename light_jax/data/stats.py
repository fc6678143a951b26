"""Documents, tokens, lengths and ids of shards, counted in one pass over every token."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from light_jax.data.footer import reread_footer
from light_jax.data.index import READERS, IndexedShard, index_shards
from light_jax.data.rowgroup import documents
from light_jax.data.shards import Paths
from light_llm.errors import UserError
from light_llm.preprocess.entropy import entropy
from light_llm.printing import printable


@dataclass(frozen=True)
class Stats:
    """Counts over all shards. `lengths` and `ids` are (values, counts), int64 [n] each, by value.

    A length is a document's tokens; `ids` holds the ids that occur.
    """

    shards: list[IndexedShard]
    lengths: tuple[np.ndarray, np.ndarray]
    ids: tuple[np.ndarray, np.ndarray]

    @property
    def documents(self) -> int:
        return int(self.lengths[1].sum())

    @property
    def tokens(self) -> int:
        return int(self.ids[1].sum())

    @property
    def empty(self) -> int:
        """Documents without a token."""
        values, counts = self.lengths
        return int(counts[0]) if values[0] == 0 else 0

    @property
    def entropy(self) -> float:
        """Entropy of single tokens, in nats: the loss of a model that knows only frequencies."""
        return entropy(self.ids[1])

    def length_at(self, share: float) -> int:
        """The least length that `share` of the documents do not exceed: 0.5 gives the median."""
        values, counts = self.lengths
        wanted = max(1, math.ceil(share * self.documents))
        return int(values[np.searchsorted(np.cumsum(counts), wanted)])

    def most_common(self, number: int) -> list[tuple[int, int]]:
        """(id, count) of the most common ids, the most common first."""
        values, counts = self.ids
        order = np.lexsort((values, -counts))[:number]
        return list(zip(values[order].tolist(), counts[order].tolist(), strict=True))


def as_json(stats: Stats, top: int, text_of: Callable[[int], str | None]) -> dict[str, Any]:
    """The counts as JSON; docs/data.md explains the keys.

    Args:
        top: how many of the most common ids.
        text_of: an id's text, None without a tokenizer.
    """
    lengths, ids = stats.lengths[0], stats.ids[0]
    return {
        "shards": len(stats.shards),
        "bytes": sum(shard.size for shard in stats.shards),
        "row_groups": sum(len(shard.rows) for shard in stats.shards),
        "documents": stats.documents,
        "empty_documents": stats.empty,
        "tokens": stats.tokens,
        "lengths": {
            "mean": stats.tokens / stats.documents,
            "least": int(lengths[0]),
            "median": stats.length_at(0.5),
            "p90": stats.length_at(0.9),
            "p99": stats.length_at(0.99),
            "greatest": int(lengths[-1]),
        },
        "ids": {"count": len(ids), "least": int(ids[0]), "greatest": int(ids[-1])}
        if stats.tokens
        else None,
        "entropy": stats.entropy if stats.tokens else None,
        "most_common": [
            {"id": id, "count": number, "share": number / stats.tokens, "text": text_of(id)}
            for id, number in stats.most_common(top)
        ],
    }


def count(paths: Paths, field: str) -> Stats:
    """Read every row group of the shards behind `paths` once, in threads.

    Raises:
        UserError: the shards cannot be used, or hold no document. `field` names `paths`.
    """
    shards = index_shards(paths, field=field)
    groups = [(shard, group) for shard in shards for group in range(len(shard.rows))]
    lengths: Counter[int] = Counter()
    ids: Counter[int] = Counter()
    with ThreadPoolExecutor(READERS) as pool:
        for of_lengths, of_ids in pool.map(lambda at: _count_group(*at), groups):
            lengths.update(of_lengths)
            ids.update(of_ids)
    if not lengths:
        raise UserError(f"{field}={str(paths)!r} holds no document; give shards that hold some")
    return Stats(shards, _sorted(lengths), _sorted(ids))


def _count_group(shard: IndexedShard, group: int) -> tuple[dict[int, int], dict[int, int]]:
    footer = reread_footer(shard.path, shard.footer_crc32)
    lengths, ids = documents(footer, group)
    return _tally(lengths), _tally(ids)


def _tally(numbers: np.ndarray) -> dict[int, int]:
    """How often each number, none below 0, occurs."""
    if numbers.max(initial=0) < max(2**20, numbers.size):
        counts = np.bincount(numbers)
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(numbers, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _sorted(counts: Counter[int]) -> tuple[np.ndarray, np.ndarray]:
    pairs = np.array(sorted(counts.items()), np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def require_matplotlib() -> Any:
    """The class that `draw` needs.

    Raises:
        UserError: it is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "drawing needs matplotlib, which is not installed: "
            "pip install 'light-llm-jax[plot]'; --no-png leaves the picture out"
        ) from None
    return Figure


def draw(stats: Stats, title: str, path: Path) -> None:
    """A PNG: lengths of documents, how common ids are by rank, tokens of each of several shards.

    Raises:
        UserError: without matplotlib, or `path` cannot be written.
    """
    several = len(stats.shards) > 1
    panels = 3 if several else 2
    figure = require_matplotlib()(figsize=(4 * panels, 3.6), layout="constrained")
    figure.suptitle(printable(title), parse_math=False)
    by_length, by_rank, *by_shard = figure.subplots(1, panels)

    values, counts = stats.lengths
    edges = np.unique(np.geomspace(1, max(2, values[-1] + 1), 60).astype(np.int64))
    by_length.hist(np.maximum(values, 1), bins=[*edges], weights=counts)
    by_length.axvline(stats.length_at(0.5), color="black", linewidth=1, linestyle="--")
    by_length.set(xscale="log", xlabel="tokens of a document", ylabel="documents")
    by_length.set_title(f"{stats.documents:,} documents, median {stats.length_at(0.5):,}")

    by_rank.loglog(np.arange(1, len(stats.ids[1]) + 1), np.sort(stats.ids[1])[::-1])
    by_rank.set(xlabel="rank of an id", ylabel="times it occurs")
    by_rank.set_title(f"{len(stats.ids[0]):,} ids, {stats.entropy:.2f} nats a token")

    for axes in by_shard:
        per_shard = [int(shard.tokens.sum()) for shard in stats.shards]
        axes.bar(np.arange(len(per_shard)), per_shard, width=1)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="shard", ylabel="tokens")
        axes.set_title(f"{stats.tokens:,} tokens")
    try:
        if path.is_symlink() and (path.is_file() or not path.exists()):
            path.unlink()  # replace a link itself, but write to a device such as /dev/stdout
        figure.savefig(path, format="png", dpi=150)
    except OSError as error:
        raise UserError(
            f"--png {path}: cannot be written: {error.strerror}; give a path in a folder that is "
            "there, or --no-png"
        ) from None
