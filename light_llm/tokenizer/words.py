"""Words short enough to train a BPE on: its trainer's time is quadratic in the length of a word."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from light_llm.files import given

LONGEST_WORD = 1000
"""Characters. DNA, base64 or a language without spaces can be one word from end to end."""
WINDOW = 2**18
"""Characters that are looked at together."""
_SPACES = re.compile(rf"\s{{{LONGEST_WORD}}}")


class ShortWords:
    """Texts whose words have at most `LONGEST_WORD` characters; iterable.

    A longer word is given in pieces, as texts of their own. Everything else is as it was: a text
    without a long word is given unchanged, and the words around a long one are the same words.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.cut = 0
        """How many words were cut so far."""

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            if _may_hold_long(text):
                yield from self._short(text)
            else:
                yield text

    def _short(self, text: str) -> Iterator[str]:
        given_to = 0  # what stands before was given
        before = 0  # where the word before begins, if it is white space; else where it ends
        for start, end in _words(text):
            if end - start > LONGEST_WORD:
                self.cut += 1
                # white space alone: what follows it decides how it is split into words
                yield from filter(None, (text[given_to:before], text[before:start]))
                for piece in range(start, end, LONGEST_WORD):
                    yield text[piece : min(piece + LONGEST_WORD, end)]
                given_to = before = end
            else:
                before = start if _is_space(text[end - 1]) else end
        if given_to < len(text):
            yield text[given_to:]


def _may_hold_long(text: str) -> bool:
    """False only if no word is long: a word holds no space or line end, except a first space, or it
    is white space as a whole. Finding the words takes as long as training on them."""
    if len(text) <= LONGEST_WORD:
        return False
    stretches = text.replace("\n", " ").split(" ")
    return max(map(len, stretches)) >= LONGEST_WORD or _SPACES.search(text) is not None


def _is_space(character: str) -> bool:
    r"""Whether the pattern of a byte-level BPE takes it for one; Python has four more."""
    return character.isspace() and character not in "\x1c\x1d\x1e\x1f"


def _words(text: str) -> Iterator[tuple[int, int]]:
    """Where each word of a byte-level BPE begins and ends, in characters."""
    from tokenizers import pre_tokenizers

    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    start, size = 0, WINDOW
    while True:
        is_last = start + size >= len(text)
        with given.foreign(lambda reason: f"the text cannot be split into words: {reason}"):
            words = splitter.pre_tokenize_str(text[start : start + size])
        # what comes behind a window may change its last two words
        places = [(start + first, start + last) for _, (first, last) in words]
        places = places if is_last else places[:-2]
        yield from places
        if is_last:
            return
        start, size = (places[-1][1], WINDOW) if places else (start, 2 * size)
