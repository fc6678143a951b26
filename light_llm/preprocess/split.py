"""The split into train and val: which texts are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


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

    def is_val(self, text: str) -> bool:
        limit = int(self.fraction * 2**64)
        if limit == 0 or self.lowest == self.highest:
            return False
        place = text_hash(text)
        if self.lowest >= limit:
            return place == self.lowest
        return place < limit and place != (self.highest if self.highest < limit else None)


def split_of_all(fraction: float, texts: Iterable[str]) -> Split:
    """The split of a corpus that consists of `texts`."""
    places = [text_hash(text) for text in texts]
    return Split(fraction, min(places), max(places))


def text_hash(text: str) -> int:
    """A hash in 0 .. 2^64 - 1, evenly distributed and the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
