"""Texts on which two tokenizers that differ are likely to differ; the same in every run."""

from __future__ import annotations

import random
from collections.abc import Iterator

from light_llm.preprocess.disputed import CODE_POINTS, seen, table

PIECES = (
    *("'s", "'S", "'ſ", "'ll", "'LL", "'Re", "'t", "n't", "'VE", "'d", "’s", "''", "'"),
    *(" ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", "\r", " \n", "\n ", "\t\t", " " * 17, "\n" * 9),
    *("\xa0", "\u2003", "\u3000", "\u2028", "\x85", "\x0b", "\x0c", "\x1c", "\x1f", "\u1680"),
    *("\0", "\x7f", "\ufffd", "\ufeff", "\u200b", "\u200d", "\xad", "\ufffc", "\u202e", "\ufe0f"),
    *("the", "The", "HELLO", "helloWorld", "camelCASEword", "x", "a", "I", "__init__", "naïve"),
    *("1", "12", "123", "1234567", "½", "²", "٣", "Ⅷ", "①", "𝟘", "१२३", "0" * 30, "1.5e-3"),
    *("e\u0301", "é", "ﬁ", "ﬆ", "\u212a", "\u212b", "\u2126", "ǅ", "ß", "ẞ", "İ", "ı", "ᾳ"),
    *("\u0300", "\u0345\u0323", "\u0f71\u0f72", "\u093c", "a\u0328\u0301\u0323", "\u1100\u1161"),
    *(
        "가",
        "각\u11a8",
        "の",
        "中文",
        "日本語テキスト",
        "ไทย",
        "नमस्ते",
        "క్ష",
        "עברית",
        "عربي",
        "Ελλάδα",
    ),
    *("Привет", "հայերեն", "ქართული", "አማርኛ", "ᏣᎳᎩ", "ខ្មែរ", "မြန်မာ", "ꦗꦮ", "𐍈", "𝓪", "𠀀"),
    *("😀", "👍🏽", "👨‍👩‍👧", "🇩🇪", "1️⃣", "☺️", "\ue000", "\U000f0000", "\U0010fffd"),
    *("!", "?!", "...", "--", "_", "#", "//", "/*", "{}", "()", "=>", "$", "€", '"', "`", "“", "¡"),
    *("▁", "▁▁", "<0x0A>", "<s>", "</s>", "<unk>", "<|endoftext|>", "Ġ", "Ċ", "[UNK]"),
    *("a" * 50, "ab" * 400, "x1" * 20, "=" * 80, "https://a.b/c?d=e&f=1", "user@host", "C:\\d\\"),
)
RANDOM = 400
"""How many documents are put together from the pieces, words and single characters."""
_UNIFORM = (
    *(range(0x3400, 0x4DC0), range(0x4E00, 0xA000), range(0xAC00, 0xD7A4), range(0xE000, 0xF900)),
    *(range(0x17000, 0x18D00), range(0x20000, 0x40000), range(0xF0000, CODE_POINTS)),
)
"""Han, Hangul, private use and Tangut: alike within, so every `_STRIDE`th is taken."""
_STRIDE = 61
_BLOCK = 64  # characters of a document


def battery() -> Iterator[str]:
    """The texts: pieces alone and in pairs, every character, random mixtures."""
    yield ""
    for first in PIECES:
        yield first
        yield " ".join(f"{first}{other}" for other in PIECES)
    characters = list(_characters())
    for start in range(0, len(characters), _BLOCK):
        yield "".join(f"a{c}1 {c}'s{c}{c}\n" for c in characters[start : start + _BLOCK])
    for codes in seen():
        for code in (codes.start, codes.stop - 1):
            yield f"a{chr(code)}'s {chr(code)}{chr(code)} e\u0301{chr(code)}\u0323 1{chr(code)}"
    yield from _mixtures(characters)


def _characters() -> Iterator[str]:
    import numpy as np

    taken = ~table()
    for codes in _UNIFORM:
        taken[codes.start : codes.stop] &= np.arange(codes.start, codes.stop) % _STRIDE == 0
    return map(chr, np.flatnonzero(taken).tolist())


def _mixtures(characters: list[str]) -> Iterator[str]:
    draw = random.Random(0)
    for _ in range(RANDOM):
        parts = []
        for _ in range(draw.randrange(1, 40)):
            kind = draw.random()
            among = PIECES if kind < 0.7 else characters[:6000] if kind < 0.85 else characters
            parts.append(draw.choice(among))
        yield "".join(parts)
