"""Text in, text out: a prompt to ids, and the ids that continue it to text as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from light_llm.errors import UserError
from light_llm.preprocess.rows import whole_characters
from light_llm.tokenizer import UNKNOWN_CHAR, StreamDecoder, Tokenizer

if TYPE_CHECKING:
    from light_llm.models.transformer import Transformer
    from light_llm.sampling import Sampling


def generate_text(
    model: Transformer, tokenizer: Tokenizer, prompt: str, sampling: Sampling
) -> Iterator[str]:
    """The text that continues a prompt, in pieces as they are written; `"".join` makes one text.

    It ends before the token that ends a document, after max_tokens, or at the model's max_seq_len.

    Raises:
        UserError: at the call: a prompt without a token, one that leaves no room, or one
            with an id outside the model's vocabulary (the tokenizer of another model).
    """
    from light_llm.generate import generate

    prompt_ids = encode_prompt(tokenizer, prompt)
    return decoded(tokenizer, prompt_ids, generate(model, prompt_ids, sampling, tokenizer.eos_id))


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The prompt's ids, as llm-preprocess begins a document; an empty prompt is its mark alone.

    The mark is BOS, or without one EOS, which ends the document before. Half surrogates, in which
    Python hands over bytes that are not UTF-8, are U+FFFD to the model.

    Raises:
        UserError: the tokenizer has no mark for an empty prompt, or sees no token in the text.
    """
    bos_id, eos_id = tokenizer.bos_id, tokenizer.eos_id
    if not prompt:
        mark = eos_id if bos_id is None else bos_id
        if mark is None:
            raise UserError(
                "the prompt is empty, and the tokenizer has neither BOS nor EOS to begin a "
                "document with; give some text"
            )
        return [mark]
    ids = tokenizer.encode(whole_characters(prompt))
    if not ids:
        raise UserError(f"the prompt {prompt!r} holds no token; give some text")
    if bos_id is not None and bos_id != eos_id and ids[:1] != [bos_id]:
        ids = [bos_id, *ids]
    return ids


def decoded(tokenizer: Tokenizer, prompt_ids: Sequence[int], ids: Iterable[int]) -> Iterator[str]:
    """The text of `ids` in pieces: one for each id, and the rest at the end."""
    decoder = StreamDecoder(tokenizer)
    # It continues the prompt: alone, SentencePiece would drop a leading space. A prompt whose end
    # is half a character would be held back.
    if not tokenizer.decode(prompt_ids).endswith(UNKNOWN_CHAR):
        for id in prompt_ids:
            decoder.add(id)
    for id in ids:
        yield decoder.add(id)
    yield decoder.flush()
