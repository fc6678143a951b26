"""Shards made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Docs = Sequence[Sequence[int | None] | None]


@pytest.fixture
def write() -> Callable[..., str]:
    """write(path, docs, kind=list of int32, lengths=None, rows=docs per row group, ...) -> path."""

    def write_shard(
        path: Path,
        docs: Docs,
        kind: pa.DataType | None = None,
        lengths: Sequence[int] | None = None,
        rows: int = 3,
        **options: Any,
    ) -> str:
        columns = {"tokens": pa.array(docs, kind or pa.list_(pa.int32()))}
        if lengths is not None:
            columns = {"length": pa.array(lengths), **columns}
        pq.write_table(pa.table(columns), path, row_group_size=rows, **options)
        return str(path)

    return write_shard


@pytest.fixture
def corpus(tmp_path: Path, write: Callable[..., str]) -> tuple[Path, list[list[list[int]]]]:
    """A folder of five shards and their documents: empty, short and huge ones."""
    rng = np.random.default_rng(7)
    folder = tmp_path / "corpus"
    folder.mkdir()
    shards = []
    for number in range(5):
        sizes = [*rng.integers(0, 20, size=12), 0, 1, 200 * number, 0, 0]
        docs = [rng.integers(0, 100, size=size).tolist() for size in rng.permutation(sizes)]
        write(folder / f"{number}.parquet", docs)
        shards.append(docs)
    return folder, shards
