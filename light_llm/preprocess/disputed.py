"""Characters on which the two libraries that encode may disagree, and the texts that hold one.

Both split a text into words by what Unicode says of its characters, and each has its own version of
Unicode. They were compared on every code point, in words and numbers, after an apostrophe and
beside accents, with GPT-2's pattern and all of `proven.PATTERNS`. Disputed are those on which they
differed, which Unicode 10 to 17 added, and all that Python's own version of Unicode does not know.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CODE_POINTS = 0x110000
WORDS = (
    "88F C5C CDC 1ACF-1AEB A7CE-A7CF A7D2 A7D4 A7F1 10940-10959 10EC5-10EC7 10EFA-10EFB 113C2 "
    "11B60-11B67 11DB0-11DE9 1611E 16D67 16EA0-16ED3 16FF2-16FF6 187F8-187FF 18D09-18D1E "
    "18D80-18DF2 1E6C0-1E6FF 2B73A-2B73F 2CEA2-2CEAD 323B0-33479"
)
"""Code points that they were seen to take for letters, marks or neither, each its own way. In
hexadecimal, with unassigned ones between them."""
ACCENTS = (
    "7FD 898-89F 8CA-8D3 9FE C3C D3B-D3C EBA 1715 1ABF-1ACE 1DF6-1DFA A82C 10D24-10D27 10EAB-10EAC "
    "10F46-10F50 10F82-10F85 11070 1133B 1145E 11839-1183A 11930 11935 11938 1193D-1193E 11943 "
    "119E0 11A34 11A47 11A99 11D42 11D44-11D45 11D97 16FF0-16FF1 1E130-1E136 1E2AE 1E2EC-1E2EF"
)
"""Code points that NFC was seen to order or compose otherwise: their Unicode for NFC is older."""
_ASCII = bytes(range(128))
_WINDOW = 2**20  # characters that are looked at together


def seen() -> list[range]:
    """The ranges of `WORDS` and `ACCENTS`."""
    pairs = (span.partition("-") for span in f"{WORDS} {ACCENTS}".split())
    return [range(int(first, 16), int(last or first, 16) + 1) for first, _, last in pairs]


def holds_disputed(text: str) -> bool:
    """Whether a character of the text is disputed."""
    import numpy as np

    if text.isascii():
        return False
    for start in range(0, len(text), _WINDOW):
        window = text[start : start + _WINDOW].encode("utf-8", "surrogatepass")
        others = window.translate(None, _ASCII).decode("utf-8", "surrogatepass")
        codes = np.frombuffer(others.encode("utf-32-le", "surrogatepass"), np.uint32)
        if table()[codes].any():
            return True
    return False


@functools.cache
def table() -> np.ndarray:
    """Of each code point, whether it is disputed."""
    import numpy as np

    disputed = np.ones(CODE_POINTS, bool)
    known = [
        code
        for code in itertools.chain(range(0x40000), range(0xE0000, 0xE1000))
        if unicodedata.category(chr(code)) not in ("Cn", "Cs")
    ]
    disputed[known] = False
    for plane in (0xF0000, 0x100000):  # private use, but for the last two of each
        disputed[plane : plane + 0xFFFE] = False
    for codes in seen():
        disputed[codes.start : codes.stop] = True
    return disputed
