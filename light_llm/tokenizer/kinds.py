"""The kinds of tokenizer behind one interface, and training the two that can be trained here.

`encode` adds no special tokens unless asked, and in the tokenizers that are trained here a document
that contains the text `<|endoftext|>` gets the tokens of these letters, not the end mark.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from light_llm.errors import UserError
from light_llm.files import given
from light_llm.tokenizer.words import ShortWords

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"
MIN_BPE_VOCAB = 257  # the 256 bytes and END_OF_TEXT
CHAR_FILE = "char_tokenizer.json"
UNKNOWN_CHAR = "\N{REPLACEMENT CHARACTER}"


class Tokenizer(Protocol):
    """Text <-> ids. Ids are 0 .. vocab_size - 1; an unused id decodes to ""."""

    @property
    def vocab_size(self) -> int:
        """The largest id plus one, added tokens included: the least `model.vocab_size`."""

    @property
    def eos_id(self) -> int | None:
        """The id that ends a document, or None."""

    @property
    def bos_id(self) -> int | None:
        """The id that begins a document, or None."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]: ...

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = False
    ) -> list[list[int]]:
        """`encode` of each text; in parallel where the tokenizer can."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...

    def save(self, folder: str | Path) -> None:
        """Write a folder that `load_tokenizer` reads (and, unless char, `AutoTokenizer` too)."""


def _fails(reason: str) -> str:
    return f"the tokenizer fails: {reason}; use another tokenizer or another text"


class SubwordTokenizer:
    """A `tokenizers.Tokenizer` (BPE, unigram, WordPiece) that knows its first and last token."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        eos_token: str | None,
        bos_token: str | None = None,
        companions: dict[str, str] | None = None,
    ):
        """`companions`: names and texts of the files that `save` puts beside tokenizer.json."""
        backend.no_truncation()  # some saved tokenizers cut or pad every text; a shard must not
        backend.no_padding()
        self.backend = backend
        self.eos_id: int | None = backend.token_to_id(eos_token) if eos_token else None
        self.bos_id: int | None = backend.token_to_id(bos_token) if bos_token else None
        self.vocab_size: int = 1 + max(backend.get_vocab(with_added_tokens=True).values())
        self.absent = [
            token
            for token in (bos_token, eos_token)
            if token and backend.token_to_id(token) is None
        ]
        """Named marks that have no id in the vocabulary."""
        self._companions = companions or {}

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        with given.foreign(_fails):
            return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = False
    ) -> list[list[int]]:
        with given.foreign(_fails):
            encodings = self.backend.encode_batch_fast(
                list(texts), add_special_tokens=add_special_tokens
            )
            return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        with given.foreign(_fails):
            return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = self.backend.to_str(pretty=True)  # its own `save` raises no OSError on a full disk
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        for name, text in self._companions.items():
            (folder / name).write_text(text, encoding="utf-8")


class CharTokenizer:
    """One id per character. Id 0 is any unknown one and decodes to U+FFFD, id 1 ends a document."""

    bos_id: int | None = None
    eos_id: int | None = 1

    def __init__(self, characters: str):
        """`characters`: the known ones; their ids start at 2, in this order."""
        self.characters = characters
        self.vocab_size: int = 2 + len(characters)
        self._pieces = [UNKNOWN_CHAR, END_OF_TEXT, *characters]
        self._ids = {character: id for id, character in enumerate(characters, start=2)}

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """There are no special tokens to add, so `add_special_tokens` has no effect."""
        return [self._ids.get(character, 0) for character in text]

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = False
    ) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        shown = (id for id in ids if 0 <= id < self.vocab_size)
        return "".join(self._pieces[id] for id in shown if id != 1 or not skip_special_tokens)

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"type": "char", "characters": self.characters}, indent=2)
        (folder / CHAR_FILE).write_text(text + "\n", encoding="utf-8")


class PythonTokenizer:
    """A tokenizer of transformers that has no `tokenizers` backend, such as ByT5's."""

    def __init__(self, inner: PreTrainedTokenizerBase):
        self._inner = inner
        self.kind: str = type(inner).__name__
        """The class of transformers."""
        self.eos_id: int | None = inner.eos_token_id
        self.bos_id: int | None = inner.bos_token_id
        self.vocab_size: int = 1 + max(inner.get_vocab().values())

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return self._inner.encode(text, add_special_tokens=add_special_tokens, verbose=False)

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = False
    ) -> list[list[int]]:
        return [self.encode(text, add_special_tokens) for text in texts]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        text = self._inner.decode(
            [id for id in ids if 0 <= id < self.vocab_size],
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        assert isinstance(text, str)  # a list only for a list of lists
        return text

    def save(self, folder: str | Path) -> None:
        self._inner.save_pretrained(str(folder))


def train_bpe(
    texts: Iterable[str] | ShortWords, vocab_size: int, min_frequency: int = 2
) -> SubwordTokenizer:
    """Train a byte-level BPE like GPT-2's: every text survives encode and decode exactly.

    `<|endoftext|>` is id 0, the 256 bytes follow, then the merges of pairs that occur at least
    `min_frequency` times; a small text may give fewer than `vocab_size` ids. Texts are read once
    and not kept. Equal texts give an equal tokenizer. Words that are too long to train on are
    read in pieces (`ShortWords`). While it trains, no signal is handled and no other thread runs.

    Raises:
        UserError: vocab_size is below 257.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab_size < MIN_BPE_VOCAB:
        raise UserError(
            f"vocab_size={vocab_size} is too small for BPE: the 256 bytes and {END_OF_TEXT} "
            f"need {MIN_BPE_VOCAB}; use {MIN_BPE_VOCAB} or more"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    short = texts if isinstance(texts, ShortWords) else ShortWords(texts)
    backend.train_from_iterator(short, trainer)
    return trained_bpe(backend)


def trained_bpe(backend: tokenizers.Tokenizer) -> SubwordTokenizer:
    """The tokenizer that `train_bpe` makes of what it trained."""
    backend.encode_special_tokens = True
    # split_special_tokens is what transformers calls encode_special_tokens.
    config = config_text(eos_token=END_OF_TEXT, split_special_tokens=True)
    return SubwordTokenizer(backend, END_OF_TEXT, companions={"tokenizer_config.json": config})


def train_char(texts: Iterable[str]) -> CharTokenizer:
    """Give every character of `texts` an id, in the order of their code points."""
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    return CharTokenizer("".join(sorted(characters)))


def config_text(**values: Any) -> str:
    """A tokenizer_config.json that lets transformers take tokenizer.json as it is."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return json.dumps(config | values, indent=2) + "\n"
