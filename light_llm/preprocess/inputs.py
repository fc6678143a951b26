"""How many documents and tokens came from each --input, by the column `source` of the shards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from light_llm.files.arrow import of_texts
from light_llm.files.parquet import opened
from light_llm.preprocess.files import SourceFile
from light_llm.preprocess.opening import printable
from light_llm.preprocess.schema import LENGTH, SOURCE

if TYPE_CHECKING:
    import pyarrow as pa

_NUMBER = r":[0-9]+$"  # of a line, a row or a piece


@dataclass(frozen=True)
class Input:
    """What came from one of the inputs."""

    name: str
    documents: int
    tokens: int


def of_inputs(
    names: Sequence[str], files: Iterable[SourceFile], shards: Iterable[Path]
) -> tuple[Input, ...]:
    """
    Args:
        names: the inputs, as they were given.
        files: all their files.
        shards: what was made of them.

    Raises:
        UserError: a shard cannot be read.
    """
    origins = {printable(file.path): file.origin for file in files}
    numbered = [path for path in origins if re.search(_NUMBER, path)]
    documents, tokens = [0] * len(names), [0] * len(names)
    for shard in shards:
        for path, number, length in _counts(shard, numbered):
            documents[origins[path]] += number
            tokens[origins[path]] += length
    return tuple(map(Input, names, documents, tokens))


def _counts(shard: Path, numbered: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """The files in a shard, each with its documents and tokens.

    Args:
        numbered: files whose names end as if a line were named.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    sources, lengths = _column(shard, SOURCE), _column(shard, LENGTH)
    paths = pc.replace_substring_regex(sources, _NUMBER, "")
    if numbered:
        whole = pc.is_in(sources, value_set=of_texts([path.encode() for path in numbered]))
        paths = pc.if_else(whole, sources, paths)
    table = pa.table({"path": paths, "length": lengths})
    counts = table.group_by("path").aggregate([("length", "count"), ("length", "sum")])
    columns = (counts[name].to_pylist() for name in ("path", "length_count", "length_sum"))
    yield from zip(*columns, strict=True)


def _column(shard: Path, name: str) -> pa.ChunkedArray:
    import pyarrow as pa

    with opened(shard, name) as parquet:
        kind = parquet.file.schema_arrow.field(name).type
        return pa.chunked_array([batch.column(0) for batch in parquet.batches(name)], kind)
