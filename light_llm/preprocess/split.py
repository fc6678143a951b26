"""The split into train and val: which texts are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Split:
    """Texts whose hash is in the lowest `fraction` of all hashes are held out.

    So a text's side depends only on the text, with one exception. In a small corpus the lowest and
    the highest hash are known; if all its texts would be on one side, the text with the lowest hash
    (if val is empty) or the highest (if train is empty) moves to the other. A corpus with one
    distinct text is all train.
    """

    fraction: float
    lowest: int = 0
    highest: int = 2**64 - 1

    @classmethod
    def parse(cls, row: Any) -> Split:
        """From the JSON of a journal, which anybody may have written.

        Raises:
            ValueError: it is not a split.
        """
        split = cls(**row)
        hashes = (split.lowest, split.highest)
        if type(split.fraction) not in (int, float) or not 0 <= split.fraction < 1:
            raise ValueError("the fraction of a split must be at least 0 and below 1")
        if any(type(place) is not int or not 0 <= place < 2**64 for place in hashes):
            raise ValueError("the hashes of a split must be numbers of 64 bits")
        return split

    def held_out(self, places: np.ndarray) -> np.ndarray:
        """bool [texts], whether each is held out.

        Args:
            places: uint64 [texts], as `text_hashes` gives them.
        """
        import numpy as np

        limit = int(self.fraction * 2**64)
        if limit == 0 or self.lowest == self.highest:
            return np.zeros(len(places), bool)
        if self.lowest >= limit:
            return places == np.uint64(self.lowest)
        held = places < np.uint64(limit)
        return held & (places != np.uint64(self.highest)) if self.highest < limit else held


def split_of_all(fraction: float, texts: Sequence[str]) -> Split:
    """The split of a corpus that consists of `texts`."""
    places = text_hashes(texts)
    return Split(fraction, int(places.min()), int(places.max()))


def text_hashes(texts: Sequence[str]) -> np.ndarray:
    """uint64 [texts]: hashes, evenly distributed and the same on every machine."""
    import numpy as np

    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)
