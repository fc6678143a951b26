"""--dry-run: what a run would read and make, estimated from a sample. Nothing is written."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from light_llm.errors import UserError
from light_llm.files.remotefile import InputFile
from light_llm.preprocess.choice import Choice
from light_llm.preprocess.config import PreprocessConfig
from light_llm.preprocess.corpus import FileCorpus
from light_llm.preprocess.encode import encode
from light_llm.preprocess.engine import FastTokenizer
from light_llm.preprocess.files import SourceFile
from light_llm.preprocess.notices import notice
from light_llm.preprocess.opening import Reading, is_compressed, size_of
from light_llm.preprocess.output import check_output, check_place
from light_llm.preprocess.part import cores
from light_llm.preprocess.pipeline import open_corpora, row_text
from light_llm.preprocess.progress import Progress
from light_llm.preprocess.rowbatch import row_batch
from light_llm.preprocess.shards import ShardWriter
from light_llm.preprocess.sources import Document
from light_llm.preprocess.train import cut, load_named, train_on
from light_llm.tokenizer import Tokenizer

Result = TypeVar("Result")

SAMPLED_FILES = 8
SAMPLED_BYTES = 2 * 2**20
"""Of one file, as it lies on the disk."""
ENCODED = 2_000_000
"""Characters that are tokenized and written, to take the time."""


@dataclass
class Sample:
    """What the files of a kind gave, as far as they were read."""

    files: int = 0
    bytes: int = 0
    documents: int = 0
    characters: int = 0

    def documents_in(self, size: int) -> float:
        """About how many a file of `size` bytes has."""
        if self.documents == self.files:  # as text files, of which each is a document
            return 1
        return size * self.documents / self.bytes


@dataclass(frozen=True)
class Estimate:
    files: list[tuple[InputFile, int]]
    """With their bytes."""
    sampled: int
    """How many of them were read, in part or whole."""
    documents: float
    characters: float
    tokens: float
    shard_bytes: float
    seconds: float
    """Without the training of the tokenizer."""
    cores: int
    trains: bool
    """Whether the run would train the tokenizer; here it was trained on the sample."""

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.files)


def estimate(config: PreprocessConfig) -> Estimate:
    """What `preprocess(config)` would read and make.

    Raises:
        UserError: as `preprocess`, as far as the sample shows it; the input is a dataset, whose
            size is not known; or the sample has no text.
    """
    if config.hf_dataset is not None:
        raise UserError(
            "--dry-run estimates from the sizes of files, and a streamed dataset has none; give "
            "--input, or leave --dry-run out"
        )
    for step in config.steps():
        raise UserError(f"--dry-run estimates the whole input; leave out --{step}")
    check_place(config.output)
    check_output(config.output, config.overwrite, ("",))
    if config.dedupe is not None:
        notice("--dedupe drops duplicates, which a sample does not show: the estimate has them")
    (corpus,) = open_corpora(config, row_text(config)[0])
    assert isinstance(corpus, FileCorpus)
    files = [(file.path, size_of(file.path)) for file in corpus.files]
    sizes = dict(files)
    sample = dataclasses.replace(corpus, files=_spread(corpus.files, sizes))
    reader = _Reader(sample)
    with Progress("reading a sample"):
        for file in sample.files:
            reader.read(file, sizes[file.path])
    if not config.allow_skipped:
        sample.check_skipped(sample.skipped)
    if not reader.documents:
        raise UserError(f"the sample has no documents: {sample.describe()}")
    documents, characters = reader.of_all(files)
    trial = _Trial(config, reader.documents)
    reading, number = reader.seconds / reader.characters, cores()
    encoders = 1 if trial.fast else config.workers or number
    together = (reading + trial.encoding + trial.writing) / number
    return Estimate(
        files,
        len(sample.files),
        documents,
        characters,
        characters * trial.tokens,
        characters * trial.bytes,
        characters * max(reading, trial.encoding / encoders, trial.writing, together),
        number,
        config.tokenizer_path is None,
    )


def _spread(files: Sequence[SourceFile], sizes: Mapping[InputFile, int]) -> list[SourceFile]:
    """Some of the files, evenly spread over the bytes of all."""
    whole = sum(sizes.values())
    marks = [whole * (2 * number + 1) / (2 * SAMPLED_FILES) for number in range(SAMPLED_FILES)]
    chosen, passed = [], 0
    for file in files:
        passed += sizes[file.path]
        if marks and passed >= marks[0]:
            chosen.append(file)
            marks = [mark for mark in marks if mark > passed]
    return chosen


@dataclass
class _Reader:
    """Reads the sample, and says what all files hold if they are like it."""

    corpus: FileCorpus
    documents: list[Document] = field(default_factory=list)
    characters: int = 0
    seconds: float = 0.0
    _kinds: dict[str, Sample] = field(default_factory=dict)

    def read(self, file: SourceFile, size: int) -> None:
        began, read = time.perf_counter(), size
        sample, reading = self._kinds.setdefault(_kind(file.path), Sample()), Reading(size)
        for document in self.corpus.read(file, reading):
            if self.corpus.skipped.takes(document.text, self.corpus.min_length):
                sample.documents += 1
                sample.characters += len(document.text)
                self.characters += len(document.text)
                self.documents.append(document)
            if reading.place() >= SAMPLED_BYTES:
                read = min(size, reading.place())
                break
        sample.files += 1
        sample.bytes += read
        self.seconds += time.perf_counter() - began

    def of_all(self, files: Sequence[tuple[InputFile, int]]) -> tuple[float, float]:
        """Documents and characters of all files; a kind that was not sampled is like the others."""
        every = Sample(
            sum(sample.files for sample in self._kinds.values()),
            sum(sample.bytes for sample in self._kinds.values()),
            len(self.documents),
            self.characters,
        )
        documents = characters = 0.0
        for path, size in files:
            sample = self._kinds.get(_kind(path), every)
            if sample.bytes:
                documents += sample.documents_in(size)
                characters += size * sample.characters / sample.bytes
        return documents, characters


def _kind(path: InputFile) -> str:
    """Files with this ending hold about as much text in a byte."""
    inner = Path(path.stem).suffix if is_compressed(path) else ""
    return (inner + path.suffix).lower()


class _Trial:
    """Some of the sample, tokenized and written to a folder that is deleted.

    Of a character: the `tokens`, the `bytes` in a shard, the seconds of `encoding` and `writing`.
    """

    def __init__(self, config: PreprocessConfig, documents: Sequence[Document]):
        chosen = list(_first(documents))
        texts = [document.text for document in chosen]
        sources = [document.source for document in chosen]
        characters = sum(map(len, texts))
        tokenizer = _tokenizer(config, texts)
        encoder = Choice(tokenizer, config.engine, config.add_special_tokens).fastest(texts)
        self.fast = isinstance(encoder, FastTokenizer)
        with tempfile.TemporaryDirectory() as folder, Progress("tokenizing the sample"):

            def write(part: str, number: int) -> None:
                writer = ShardWriter(Path(folder), part)
                writer.add(rows.slice(0, number))
                writer.close()

            special = config.add_special_tokens
            ids = encode(texts[:1], encoder, special)
            rows = row_batch(sources[:1], texts[:1], ids)
            write("warm", 1)  # what is imported by it is no part of the speed
            ids, seconds = _timed(lambda: encode(texts, encoder, special))
            self.encoding = seconds / characters
            rows = row_batch(sources, texts, ids)
            _, seconds = _timed(lambda: write("train", len(chosen)))
            self.writing = seconds / characters
            written = sum(path.stat().st_size for path in Path(folder).glob("train/*.parquet"))
        self.bytes = written / characters
        self.tokens = len(ids.values) / characters


def _first(documents: Sequence[Document]) -> Iterator[Document]:
    characters = 0
    for document in documents:
        yield document
        characters += len(document.text)
        if characters >= ENCODED:
            return


def _tokenizer(config: PreprocessConfig, texts: Sequence[str]) -> Tokenizer:
    if config.tokenizer_path is not None:
        return load_named(config, config.tokenizer_path)
    return train_on(config, (piece for text in texts for piece in cut(text)))


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """Seconds of one core: what else runs on this machine does not count."""
    began = time.process_time()
    result = work()
    return result, time.process_time() - began
