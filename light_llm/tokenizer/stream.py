"""Text from ids that come one by one."""

from __future__ import annotations

from light_llm.tokenizer.kinds import UNKNOWN_CHAR, Tokenizer


class StreamDecoder:
    """Decodes ids as they come, never a part of a character.

    The pieces of all `add` calls and the `flush` joined are what `decode` gives for all the ids.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True):
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        # Decoders look at what precedes (SentencePiece drops a leading space), so the ids of the
        # last piece stay as context for the next.
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
        """What is left; a character that was cut off comes as U+FFFD. The decoder starts afresh."""
        piece = self._piece()
        self._context, self._pending = [], []
        return piece

    def _piece(self) -> str:
        before = self._tokenizer.decode(self._context, self._skip)
        return self._tokenizer.decode(self._context + self._pending, self._skip)[len(before) :]
