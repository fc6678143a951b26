"""From one corpus to its shards: tokenize, split into train and val, commit shard by shard."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from light_llm.errors import UserError
from light_llm.preprocess.ahead import in_threads
from light_llm.preprocess.choice import Choice
from light_llm.preprocess.config import PreprocessConfig
from light_llm.preprocess.corpus import Corpus
from light_llm.preprocess.encode import Encoders, Encodes, Untokenizable, encode
from light_llm.preprocess.engine import FAST, FastTokenizer, engine_of
from light_llm.preprocess.ids import Ids
from light_llm.preprocess.journal import Journal, under
from light_llm.preprocess.manifest import TOKENIZER
from light_llm.preprocess.notices import are, notice
from light_llm.preprocess.progress import Progress
from light_llm.preprocess.rowbatch import RowBatch, row_batch
from light_llm.preprocess.shards import Shard, ShardWriter
from light_llm.preprocess.sides import Sides
from light_llm.preprocess.split import Split, split_of_all, text_hashes
from light_llm.preprocess.stream import Chunk, Position, chunks
from light_llm.preprocess.texthashes import HashFile, write_hashes
from light_llm.tokenizer import CharTokenizer, Tokenizer

if TYPE_CHECKING:
    import numpy as np

# A corpus with fewer chunks is small: both sides of its split get something, and one process
# tokenizes it before others would have started.
SMALL_CHUNKS = 8
WORTH_A_TRIAL = 4_000_000
"""Characters: `tokenizers` encodes fewer in the time that it takes to try gigatoken."""


def write_part(
    config: PreprocessConfig,
    corpus: Corpus,
    tokenizer: Tokenizer,
    choice: Choice,
    journal: Journal,
    new: Path,
    watch: Callable[[Progress], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> None:
    """Write the shards of one corpus, from the position in the journal.

    Args:
        watch: a context around the work, which sees its progress.
    """
    part = journal.part(corpus.name)
    stream = chunks(corpus, config.shuffle_seed, part.position)
    head: list[Chunk] = []
    if not part.engines:  # nothing was encoded yet by what would be named here
        with Progress("reading the first documents"):
            head = list(itertools.islice(stream, SMALL_CHUNKS))
    if part.split is None:
        if not head:
            raise UserError(no_documents(config, corpus))
        journal.begin(corpus.name, _split(config.val_fraction, head))
    assert part.split is not None
    split, size = part.split, config.shard_size
    folders = [f"{corpus.name}/{side}".lstrip("/") for side in ("train", "val")]
    train, val = (
        ShardWriter(new, folder, len(under(folder, part.shards)), journal.check)
        for folder in folders
    )
    workers = config.workers or cores()
    small = 0 < len(head) < SMALL_CHUNKS
    head = head or list(itertools.islice(stream, 1))  # there is none where a run is continued
    encoder: Encodes = tokenizer
    if head:
        encoder = _encoder(tokenizer, choice, part.engines, head)
        journal.use(corpus.name, engine_of(encoder))
    encoding = _encoding(config, encoder, new / TOKENIZER, 1 if small or not head else workers)
    given = itertools.chain(map(head.pop, [0] * len(head)), stream)  # keeps none of them
    commits = _Commits(journal, corpus.name)
    hashes: list[np.ndarray] = []  # of the texts in the open shards
    unknown = 0
    label = f"tokenizing {corpus.name}".strip()
    sides_of = Sides(train, val, size)
    with Progress(label) as progress, watch(progress), encoding as encode_texts, sides_of as sides:

        def rows_of(chunk: Chunk) -> tuple[Chunk, RowBatch, np.ndarray, np.ndarray]:
            texts = [document.text for document in chunk.documents]
            try:
                ids = encode_texts(texts)
            except Untokenizable as error:
                raise _untokenizable(chunk, *error.args) from error
            rows = row_batch([document.source for document in chunk.documents], texts, ids)
            places = text_hashes(texts)
            return chunk, rows, places, split.held_out(places)

        threads = 1 if small or isinstance(encoder, FastTokenizer) else workers
        try:
            for chunk, rows, places, held in in_threads(rows_of, given, threads):
                done = sides.add(rows, held)
                hashes.append(places[:done])
                while done < len(rows):
                    commits.add(sides.close(), hashes, chunk.start.behind(done))
                    more = sides.add(rows.slice(done, len(rows)), held[done:])
                    hashes = [places[done : done + more]]
                    done += more
                commits.settle()
                progress.advance(documents=len(rows), tokens=int(rows.tokens.sum()))
                if corpus.reading is not None and chunk.read is not None:
                    progress.show_read(chunk.read, corpus.reading.total)
                if isinstance(tokenizer, CharTokenizer):
                    unknown += rows.count(0)
            last = sides.close()
            commits.settle(wait=True)
        except Exception:
            commits.settle(wait=True)  # what comes before the error is kept
            raise
        except BaseException:  # a signal, which cannot wait for the disk
            sides.stop()
            commits.settle()
            raise
        shards = last.result()
    if unknown:
        notice(f"{are(unknown, 'character')} unknown to the tokenizer and became id 0")
    kept = _hash_file(journal, corpus.name, hashes)
    journal.finish(corpus.name, shards, dataclasses.asdict(corpus.skipped), kept)


class _Commits:
    """Shards that are being completed, each with its line for the journal, in order."""

    def __init__(self, journal: Journal, name: str):
        self._journal, self._name = journal, name
        self._waiting: deque[tuple[Future[list[Shard]], list[np.ndarray], Position]] = deque()
        self._broken = False

    def add(self, shards: Future[list[Shard]], hashes: list[np.ndarray], end: Position) -> None:
        self._waiting.append((shards, hashes, end))

    def settle(self, *, wait: bool = False) -> None:
        """Commit those that are complete, or all. Behind one that failed midway comes none: its
        documents would be lost."""
        while self._waiting and not self._broken and (wait or self._waiting[0][0].done()):
            future, hashes, end = self._waiting[0]
            if not wait and future.exception() is not None:
                return  # who waits for it is told
            shards = future.result()
            self._broken = True
            kept = _hash_file(self._journal, self._name, hashes)
            self._journal.commit(self._name, shards, end, kept)
            self._waiting.popleft()
            self._broken = False


def _hash_file(journal: Journal, name: str, hashes: list[np.ndarray]) -> HashFile | None:
    """The hashes of the texts of the next commit, on the disk; None: it has no shards."""
    if not sum(map(len, hashes)):
        return None
    journal.check()
    return write_hashes(journal.next_hashes(name), hashes)


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _split(fraction: float, head: list[Chunk]) -> Split:
    """The split of a corpus that begins with `head`; if `head` is short, it is the whole corpus."""
    if len(head) == SMALL_CHUNKS:
        return Split(fraction)
    split = split_of_all(fraction, [doc.text for chunk in head for doc in chunk.documents])
    if fraction and split.lowest == split.highest:
        notice("there is one text only, so nothing is held out: no val shards")
    return split


def _encoder(
    tokenizer: Tokenizer, choice: Choice, engines: list[str], head: list[Chunk]
) -> Encodes:
    """What encodes the documents of a corpus from `head` on.

    Args:
        engines: those of a stopped run, which took gigatoken if it could and if that was worth it.
    """
    texts = [document.text for chunk in head for document in chunk.documents]
    worth = len(head) == SMALL_CHUNKS or sum(map(len, texts)) >= WORTH_A_TRIAL
    if engines:
        worth = any(engine.startswith(FAST) for engine in engines)
    return choice.fastest(texts) if worth else tokenizer


@contextlib.contextmanager
def _encoding(
    config: PreprocessConfig, encoder: Encodes, folder: Path, workers: int
) -> Iterator[Callable[[Sequence[str]], Ids]]:
    """The function that turns texts into ids: in this process, or in `workers` others."""
    special = config.add_special_tokens
    if workers == 1 or isinstance(encoder, FastTokenizer):
        stop = threading.Event()
        try:
            yield lambda texts: encode(texts, encoder, special, stop)
        finally:
            stop.set()  # a thread that is in the midst of a chunk ends soon
        return
    with Encoders(folder, workers, special) as encoders:
        yield encoders.encode


def _untokenizable(chunk: Chunk, index: int, reason: str) -> UserError:
    source = chunk.documents[index].source
    return UserError(
        f"{source}: the tokenizer fails on this document: {reason}; leave it out, or take a "
        "tokenizer that has an id for everything"
    )


def no_documents(config: PreprocessConfig, corpus: Corpus) -> str:
    skipped = corpus.skipped
    return (
        f"no documents in {corpus.describe()}, {are(skipped.empty, 'document')} empty and "
        f"{skipped.short} shorter than min_length={config.min_length}"
    )
