"""The tokenizer of a run: loaded, or trained on its text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from light_llm.errors import UserError
from light_llm.preprocess.config import (
    DEFAULT_MIN_FREQUENCY,
    DEFAULT_TRAIN_CHARACTERS,
    DEFAULT_VOCAB_SIZE,
    PreprocessConfig,
)
from light_llm.preprocess.corpus import Corpus
from light_llm.preprocess.manifest import warn_of_tokenizer
from light_llm.preprocess.notices import are, notice
from light_llm.preprocess.progress import Progress
from light_llm.preprocess.sources import Document
from light_llm.preprocess.trainer import BpeTrainer
from light_llm.tokenizer import (
    CharTokenizer,
    PythonTokenizer,
    SubwordTokenizer,
    Tokenizer,
    load_tokenizer,
    train_char,
)
from light_llm.tokenizer.words import LONGEST_WORD

# The trainer takes 256 texts at a time, with about thirty bytes per character.
PIECE_CHARS = 2**18


def train_tokenizer(config: PreprocessConfig, corpora: Sequence[Corpus]) -> Tokenizer:
    """Train the kind of tokenizer that `config` names on all corpora together."""
    characters = _given(config.train_characters, DEFAULT_TRAIN_CHARACTERS) // len(corpora)

    def documents(corpus: Corpus) -> Iterator[Document]:
        return corpus.documents() if config.tokenizer == "char" else corpus.sample(characters)

    return train_on(config, _texts(doc for corpus in corpora for doc in documents(corpus)))


def train_on(config: PreprocessConfig, texts: Iterable[str]) -> Tokenizer:
    """Train the kind of tokenizer that `config` names on texts of at most `PIECE_CHARS`."""
    if config.tokenizer == "char":
        return train_char(texts)
    vocab_size = _given(config.vocab_size, DEFAULT_VOCAB_SIZE)
    min_frequency = _given(config.min_frequency, DEFAULT_MIN_FREQUENCY)
    with BpeTrainer(vocab_size, min_frequency) as trainer:
        for text in texts:
            trainer.add(text)
        with Progress("training the tokenizer"):
            tokenizer, long = trainer.train()
    if long:
        words = are(long, "word")
        notice(
            f"{words} longer than {LONGEST_WORD:,} characters: BPE was trained on pieces of that "
            "length, since longer ones take very long; the shards hold all of the text"
        )
    return tokenizer


def _given(value: int | None, default: int) -> int:
    return default if value is None else value


def load_named(config: PreprocessConfig, path: str) -> Tokenizer:
    """The tokenizer at tokenizer_path.

    Raises:
        UserError: there is none, or its kind is not the one that `config` names.
    """
    tokenizer = load_tokenizer(path)
    warn_of_tokenizer(Path(path).expanduser())
    is_char = isinstance(tokenizer, CharTokenizer)
    if config.tokenizer is not None and is_char != (config.tokenizer == "char"):
        raise UserError(
            f"tokenizer_path={path} is a {'char' if is_char else 'subword'} "
            f"tokenizer, not {config.tokenizer}; leave out --tokenizer to take it as it is"
        )
    if isinstance(tokenizer, SubwordTokenizer) and tokenizer.absent:
        named = ", ".join(map(repr, tokenizer.absent))
        notice(f"{path} names {named} to begin or end documents, and its vocabulary has no such id")
    if isinstance(tokenizer, PythonTokenizer):
        notice(
            f"{path} has no tokenizer.json, so its ids are those of transformers' {tokenizer.kind}"
        )
    if is_char and config.add_special_tokens:
        notice("a char tokenizer has no template, so add_special_tokens adds nothing")
    if tokenizer.eos_id is None:
        notice("this tokenizer has no token that ends a document: they follow each other unmarked")
    return tokenizer


def _texts(documents: Iterable[Document]) -> Iterator[str]:
    with Progress("reading") as progress:
        for document in documents:
            progress.advance(documents=1, characters=len(document.text))
            yield from cut(document.text)


def cut(text: str) -> Iterator[str]:
    """The text, cut at line ends into pieces small enough for the trainer."""
    start = 0
    while len(text) - start > PIECE_CHARS:
        end = text.find("\n", start + PIECE_CHARS) + 1 or len(text)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]
