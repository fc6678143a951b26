"""Text from ids that come one by one."""

from __future__ import annotations

from light_llm.tokenizer.kinds import UNKNOWN_CHAR, Tokenizer


class StreamDecoder:
    """Decodes ids one by one, and never gives a part of a character.

    The pieces of all `add` calls and of `flush`, joined, equal `decode` of all the ids.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True):
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        # A decoder depends on the ids before (SentencePiece drops a leading space), so the ids of
        # the last piece stay as context for the next.
        self._context: list[int] = []
        self._pending: list[int] = []

    def add(self, id: int) -> str:
        """The text that is certain now that `id` has come; "" in the middle of a character."""
        self._pending.append(id)
        piece = self._piece()
        # Bytes that do not make a character yet decode to U+FFFD.
        if not piece or piece.endswith(UNKNOWN_CHAR):
            return ""
        self._context, self._pending = self._pending, []
        return piece

    def flush(self) -> str:
        """The rest of the text, with U+FFFD for an incomplete character; resets the decoder."""
        piece = self._piece()
        self._context, self._pending = [], []
        return piece

    def _piece(self) -> str:
        before = self._tokenizer.decode(self._context, self._skip)
        return self._tokenizer.decode(self._context + self._pending, self._skip)[len(before) :]
