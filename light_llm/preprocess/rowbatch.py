"""Rows of a shard as columns, from the encoder to the writer: nothing is done document by document.

The columns are Arrow's, so a slice copies nothing, and threads work on them at the same time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from light_llm.files.arrow import numbers, of_numbers, of_texts
from light_llm.preprocess.ids import Ids
from light_llm.preprocess.schema import TOKENS, schema

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


@dataclass(frozen=True)
class RowBatch:
    """Some documents in a shard's columns."""

    columns: pa.RecordBatch
    tokens: np.ndarray
    """int64 [documents]: how many each has."""
    characters: np.ndarray
    """int64 [documents], likewise."""

    def __len__(self) -> int:
        return len(self.tokens)

    def slice(self, start: int, stop: int) -> RowBatch:
        return RowBatch(
            self.columns.slice(start, stop - start),
            self.tokens[start:stop],
            self.characters[start:stop],
        )

    def count(self, id: int) -> int:
        """How often a token is in the documents."""
        return int((numbers(self.columns.column(TOKENS).flatten()) == id).sum())

    def where(self, marks: np.ndarray) -> Iterator[RowBatch]:
        """The documents that `marks`, bool [documents], has, in order.

        A few of them are copied: they may wait long for their row group, and a slice would keep
        the whole batch in memory. Most of them are slices, which costs nothing.
        """
        import numpy as np

        if 2 * marks.sum() <= len(self):
            few = self.columns.take(of_numbers(np.flatnonzero(marks)))
            yield RowBatch(few, self.tokens[marks], self.characters[marks])
            return
        cuts = [0, *(np.flatnonzero(marks[1:] != marks[:-1]) + 1).tolist(), len(self)]
        for start, stop in itertools.pairwise(cuts):
            if marks[start]:
                yield self.slice(start, stop)


def row_batch(sources: Sequence[str], texts: Sequence[str], ids: Ids) -> RowBatch:
    """
    Args:
        sources: of each text, what the column `source` says.
        ids: of the texts, marks included; fewer than 2^31.
    """
    import numpy as np
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(ids.lengths)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(of_numbers(offsets), of_numbers(ids.values))
    columns = pa.RecordBatch.from_arrays(
        [
            of_texts([source.encode() for source in sources]),
            of_numbers(ids.lengths),
            of_texts([text.encode() for text in texts]),
            lists.cast(schema().field(TOKENS).type),
        ],
        schema=schema(),
    )
    characters = np.fromiter(map(len, texts), np.int64, len(texts))
    return RowBatch(columns, ids.lengths, characters)
