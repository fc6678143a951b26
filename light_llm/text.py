"""Text in, text out: a prompt to ids, and the ids that continue it to text as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from light_llm.errors import UserError
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
        UserError: at the call: an empty prompt, one that leaves no room, or one with an id outside
            the model's vocabulary (the tokenizer of another model).
    """
    from light_llm.generate import generate

    prompt_ids = encode_prompt(tokenizer, prompt)
    return decoded(tokenizer, prompt_ids, generate(model, prompt_ids, sampling, tokenizer.eos_id))


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The prompt's ids, as llm-preprocess begins a document.

    Raises:
        UserError: there is no text, or it is not Unicode.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:  # how Python hands over bytes of the command line that are not UTF-8
        raise UserError("the prompt is not valid UTF-8; give it in that encoding") from None
    ids = tokenizer.encode(prompt)
    if not ids:
        raise UserError(f"the prompt {prompt!r} holds no token; give some text")
    bos_id, eos_id = tokenizer.bos_id, tokenizer.eos_id
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
