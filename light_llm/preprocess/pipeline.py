"""The job: read once to count, split and train the tokenizer; read again to tokenize and write."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from light_llm.errors import UserError
from light_llm.preprocess.config import (
    DEFAULT_MIN_FREQUENCY,
    DEFAULT_VOCAB_SIZE,
    PreprocessConfig,
)
from light_llm.preprocess.entropy import unigram_entropy
from light_llm.preprocess.files import find_files
from light_llm.preprocess.output import ENTRIES, check_output, publish, staging
from light_llm.preprocess.progress import Progress
from light_llm.preprocess.shards import ShardWriter
from light_llm.preprocess.sources import Corpus, Document
from light_llm.tokenizer import CharTokenizer, Tokenizer, load_tokenizer, train_bpe, train_char

CHUNK_DOCUMENTS = 1024
CHUNK_CHARACTERS = 4_000_000
SHUFFLE_DOCUMENTS = 10_000
SHUFFLE_CHARACTERS = 64_000_000


@dataclasses.dataclass(frozen=True)
class Part:
    documents: int
    characters: int
    tokens: int
    files: int


@dataclasses.dataclass(frozen=True)
class Summary:
    train: Part
    val: Part
    vocab_size: int
    unigram_entropy: float
    """Nats per token, of val; of train where there is no val."""
    tokenizer: Path


@dataclasses.dataclass
class Survey:
    """What the first reading finds out, as the texts pass through."""

    documents: int = 0
    lowest: int = 2**64
    highest: int = -1

    def texts(self, corpus: Iterable[Document]) -> Iterator[str]:
        with Progress("reading") as progress:
            for document in corpus:
                place = text_hash(document.text)
                self.documents += 1
                self.lowest = min(self.lowest, place)
                self.highest = max(self.highest, place)
                progress.advance(documents=1)
                yield document.text


@dataclasses.dataclass(frozen=True)
class Split:
    """Which texts are held out: those whose hash is in the lowest `fraction` of all hashes.

    So a text's side depends on nothing but the text, with one exception: if all texts would be on
    one side, the text with the lowest hash (if none is in val) or the highest (if none is in
    train) moves to the other. A corpus of one distinct text is all train.
    """

    fraction: float
    lowest: int
    highest: int

    def is_val(self, text: str) -> bool:
        place = text_hash(text)
        limit = int(self.fraction * 2**64)
        if limit == 0 or self.lowest == self.highest:
            return False
        if self.lowest >= limit:
            return place == self.lowest
        return place < limit and place != (self.highest if self.highest < limit else None)


def text_hash(text: str) -> int:
    """Evenly spread over 0 .. 2^64 - 1, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def preprocess(config: PreprocessConfig) -> Summary:
    """Do what `config` asks for: shards in output/train and output/val, output/tokenizer.

    Progress and notices go to stderr. Nothing is written until every document has been read once;
    what is written becomes visible at the end, at once.

    Raises:
        UserError: an input, the output or the tokenizer is unusable; the output is as it was.
    """
    _set_threads(config.workers)
    check_output(config.output, config.overwrite)
    corpus = open_corpus(config)
    survey = Survey()
    tokenizer = make_tokenizer(config, survey.texts(corpus))
    _notice_skipped(corpus)
    if not survey.documents:
        raise UserError(
            f"no documents in {', '.join(config.input)}: of {len(corpus.files)} files "
            f"{len(corpus.binary)} are not text, and {corpus.empty} documents are empty, "
            f"{corpus.short} shorter than min_length={config.min_length}"
        )
    split = Split(config.val_fraction, survey.lowest, survey.highest)
    if config.val_fraction and survey.lowest == survey.highest:
        _notice("there is one text only, so nothing is held out: no val shards")
    documents: Iterable[Document] = corpus
    if config.shuffle_seed is not None:
        documents = shuffled(corpus, config.shuffle_seed)
    with staging(config.output) as stage:
        tokenizer.save(stage / "tokenizer")
        train = ShardWriter(stage / "train", config.shard_size)
        val = ShardWriter(stage / "val", config.shard_size)
        with train, val, Progress("tokenizing", survey.documents) as progress:
            for document, tokens in tokenize(documents, tokenizer):
                side = val if split.is_val(document.text) else train
                side.add(document.source, document.text, tokens)
                progress.advance(documents=1, tokens=len(tokens))
        summary = Summary(
            _part(train),
            _part(val),
            tokenizer.vocab_size,
            unigram_entropy(val.files or train.files),
            config.output / "tokenizer",
        )
        publish(stage, config.output, config.overwrite)
    return summary


def open_corpus(config: PreprocessConfig) -> Corpus:
    own = [config.output / entry for entry in ENTRIES]
    files, duplicates = find_files(config.input, config.include, config.exclude, without=own)
    if duplicates:
        _notice(f"{duplicates} files are given more than once; each is taken once")
    return Corpus(files, config.text_column, config.min_length)


def make_tokenizer(config: PreprocessConfig, texts: Iterator[str]) -> Tokenizer:
    """Load or train the tokenizer; `texts` are all read, either way."""
    if config.tokenizer_path is None and config.tokenizer == "char":
        return train_char(texts)
    if config.tokenizer_path is None:
        return train_bpe(
            texts,
            DEFAULT_VOCAB_SIZE if config.vocab_size is None else config.vocab_size,
            DEFAULT_MIN_FREQUENCY if config.min_frequency is None else config.min_frequency,
        )
    tokenizer = load_tokenizer(config.tokenizer_path)
    is_char = isinstance(tokenizer, CharTokenizer)
    if config.tokenizer is not None and is_char != (config.tokenizer == "char"):
        raise UserError(
            f"tokenizer_path={config.tokenizer_path} is a {'char' if is_char else 'subword'} "
            f"tokenizer, not {config.tokenizer}; leave out --tokenizer to take it as it is"
        )
    if tokenizer.eos_id is None:
        _notice("this tokenizer has no token that ends a document: they follow each other unmarked")
    for _ in texts:
        pass
    return tokenizer


def shuffled(corpus: Corpus, seed: int) -> Iterator[Document]:
    """The documents in a random order, in bounded memory: files, then documents in a buffer."""
    draw = random.Random(seed)
    files = draw.sample(corpus.files, len(corpus.files))
    buffer: list[Document] = []
    characters = 0
    for document in dataclasses.replace(corpus, files=files):
        buffer.append(document)
        characters += len(document.text)
        while len(buffer) > SHUFFLE_DOCUMENTS or characters > SHUFFLE_CHARACTERS:
            place = draw.randrange(len(buffer))
            buffer[place], buffer[-1] = buffer[-1], buffer[place]
            characters -= len(buffer[-1].text)
            yield buffer.pop()
    draw.shuffle(buffer)
    yield from buffer


def tokenize(
    corpus: Iterable[Document], tokenizer: Tokenizer
) -> Iterator[tuple[Document, list[int]]]:
    """Each document with its tokens: BOS first and EOS last, where the tokenizer has them.

    Where one token is both (GPT-2's), it ends documents. None is added where it is already.
    """
    eos = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    bos = [] if tokenizer.bos_id is None or tokenizer.bos_id in eos else [tokenizer.bos_id]
    for chunk in _chunks(corpus):
        batch = tokenizer.encode_batch([document.text for document in chunk])
        for document, ids in zip(chunk, batch, strict=True):
            yield document, (bos if ids[:1] != bos else []) + ids + (eos if ids[-1:] != eos else [])


def _chunks(corpus: Iterable[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    characters = 0
    for document in corpus:
        chunk.append(document)
        characters += len(document.text)
        if len(chunk) >= CHUNK_DOCUMENTS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _part(writer: ShardWriter) -> Part:
    return Part(writer.documents, writer.characters, writer.tokens, len(writer.files))


def _set_threads(workers: int | None) -> None:
    """Before the tokenizers library first works in parallel: its pool is made once a process."""
    if workers is not None:
        os.environ["RAYON_NUM_THREADS"] = str(workers)
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if workers > 1 else "false"


def _notice_skipped(corpus: Corpus) -> None:
    if corpus.binary:
        some = ", ".join(str(path) for path in corpus.binary[:3])
        more = ", …" if len(corpus.binary) > 3 else ""
        _notice(f"{len(corpus.binary)} files are not UTF-8 text and are skipped: {some}{more}")
    if corpus.empty:
        _notice(f"{corpus.empty} empty documents are skipped")
    if corpus.short:
        _notice(
            f"{corpus.short} documents of fewer than {corpus.min_length} characters are skipped"
        )


def _notice(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
