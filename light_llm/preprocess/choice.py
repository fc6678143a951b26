"""Which of the two libraries encodes a run's texts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from light_llm.preprocess.agreement import CHARACTERS, PIECE, beginnings
from light_llm.preprocess.battery import battery
from light_llm.preprocess.encode import Encodes
from light_llm.preprocess.engine import FastTokenizer, Unfit, check_version
from light_llm.preprocess.notices import notice
from light_llm.preprocess.progress import Progress
from light_llm.preprocess.proven import check_form, check_ids
from light_llm.tokenizer import SubwordTokenizer, Tokenizer


class Choice:
    """Tries gigatoken at most once on the battery, and on a sample of each corpus.

    Where it fails, a note says why, and `tokenizers` encodes from there on. There is no choice for
    a tokenizer that is not one of `tokenizers`, and none where that library is asked for.

    Args:
        engine: `auto` or `tokenizers`.
        special: whether the tokenizer's template adds its tokens.
    """

    def __init__(self, tokenizer: Tokenizer, engine: str, special: bool):
        self._tokenizer = tokenizer
        self._special = special
        self._open = engine == "auto" and isinstance(tokenizer, SubwordTokenizer)
        self._fast: FastTokenizer | None = None

    def fastest(self, texts: Sequence[str]) -> Encodes:
        """What encodes to the ids of the tokenizer in the least time, the sample `texts` included.

        The first call takes a second of processor time.
        """
        if self._open:
            try:
                return self._tried(texts)
            except Unfit as reason:
                self._open = False
                notice(
                    "tokenizers encodes the text, since gigatoken, which is faster, cannot stand "
                    f"for it: {reason}"
                )
        return self._tokenizer

    def _tried(self, texts: Sequence[str]) -> FastTokenizer:
        there = sum(min(len(text), PIECE) for text in texts)
        spread = texts[:: 1 + there // CHARACTERS]
        sample = list(beginnings(CHARACTERS, spread))
        if self._fast is not None:
            check_ids(self._fast, sample, self._special)
            self._fast.release()
            return self._fast
        assert isinstance(self._tokenizer, SubwordTokenizer)
        check_version()
        check_form(self._tokenizer)
        with Progress("comparing gigatoken with tokenizers"):
            fast = FastTokenizer(self._tokenizer)
            check_ids(fast, itertools.chain(battery(), sample), self._special)
            fast.release()
        self._fast = fast
        return fast
