"""The token ids of many texts in two arrays: no object for a text, and none for an id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Ids:
    """The ids of some texts, one after another."""

    values: np.ndarray
    """int32 [tokens]."""
    lengths: np.ndarray
    """int64 [texts]: how many of them each text has."""

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self) -> list[np.ndarray]:
        """The ids of each text, as views."""
        import numpy as np

        return np.split(self.values, np.cumsum(self.lengths)[:-1]) if len(self) else []


def of_rows(rows: Iterable[Sequence[int] | np.ndarray]) -> Ids:
    import numpy as np

    arrays = [np.asarray(row, np.int32) for row in rows]
    lengths = np.fromiter(map(len, arrays), np.int64, len(arrays))
    return Ids(np.concatenate(arrays) if arrays else np.empty(0, np.int32), lengths)


def with_others(ids: Ids, places: Sequence[int], rows: Sequence[np.ndarray]) -> Ids:
    """The texts of `ids` with others between them.

    Args:
        places: of the others in the result, ascending.
        rows: their ids.
    """
    import numpy as np

    if not places:
        return ids
    ends = np.concatenate([[0], np.cumsum(ids.lengths)])
    parts, start = [], 0
    for number, (place, row) in enumerate(zip(places, rows, strict=True)):
        stop = place - number
        parts += [
            Ids(ids.values[ends[start] : ends[stop]], ids.lengths[start:stop]),
            of_rows([row]),
        ]
        start = stop
    return joined([*parts, Ids(ids.values[ends[start] :], ids.lengths[start:])])


def joined(parts: Sequence[Ids]) -> Ids:
    import numpy as np

    if len(parts) == 1:
        return parts[0]
    if not parts:
        return of_rows(())
    values, lengths = ([getattr(part, name) for part in parts] for name in ("values", "lengths"))
    return Ids(np.concatenate(values), np.concatenate(lengths))


def marked(ids: Ids, bos: int | None, eos: int | None) -> Ids:
    """Each text with `bos` before it and `eos` behind it, where they are not there yet."""
    import numpy as np

    if not len(ids) or (bos is None and eos is None):
        return ids
    ends = np.cumsum(ids.lengths)
    before = _lacks(ids, ends - ids.lengths, bos)
    behind = _lacks(ids, ends - 1, eos)
    lengths = ids.lengths + before + behind
    ends = np.cumsum(lengths)
    values = np.empty(ends[-1], np.int32)
    given = np.ones(len(values), bool)
    for places, mark in (((ends - lengths)[before], bos), ((ends - 1)[behind], eos)):
        given[places] = False
        if mark is not None:
            values[places] = mark
    values[given] = ids.values
    return Ids(values, lengths)


def _lacks(ids: Ids, places: np.ndarray, mark: int | None) -> np.ndarray:
    """Of each text, whether the id at its place is not `mark`, as in a text without ids."""
    import numpy as np

    if mark is None:
        return np.zeros(len(ids), bool)
    there = ids.lengths > 0
    there[there] = ids.values[places[there]] == mark
    return ~there
