"""The documents of a corpus in the order in which they are tokenized, shuffled or not, in pieces.

Between the pieces are the places from which a run that was stopped goes on.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from light_llm.errors import UserError
from light_llm.preprocess.corpus import Corpus
from light_llm.preprocess.skipped import check_number
from light_llm.preprocess.sources import Document

CHUNK_DOCUMENTS = 2048
CHUNK_CHARACTERS = 2_000_000
SHUFFLE_DOCUMENTS = 10_000
SHUFFLE_CHARACTERS = 64_000_000


@dataclass(frozen=True)
class Position:
    """A place in the stream of documents that are tokenized: `skip` documents after `place`."""

    place: Any = None
    skip: int = 0

    @classmethod
    def parse(cls, row: Any) -> Position:
        """From the JSON of a journal, which anybody may have written; `place` is not checked.

        Raises:
            ValueError: it is not a position.
        """
        position = cls(**row)
        check_number(position.skip)
        return position

    def behind(self, documents: int) -> Position:
        return Position(self.place, self.skip + documents)


@dataclass(frozen=True)
class Chunk:
    start: Position
    documents: list[Document]
    read: int | None = None
    """Bytes of the input that were read when its last document was, if that is known."""


def chunks(corpus: Corpus, shuffle_seed: int | None, start: Position) -> Iterator[Chunk]:
    """The documents from `start`, in pieces large enough to send to another process.

    A shuffled order depends on all documents before, so there `start` is reached by reading them.
    """
    if shuffle_seed is None:
        documents = corpus.documents(start.place)
    else:
        documents = shuffled(corpus, shuffle_seed)
    passed = sum(1 for _ in itertools.islice(documents, start.skip))
    while True:
        at = Position(corpus.here()) if shuffle_seed is None else Position(skip=passed)
        taken: list[Document] = []
        characters, failure = 0, None
        try:
            for document in documents:
                taken.append(document)
                characters += len(document.text)
                if len(taken) >= CHUNK_DOCUMENTS or characters >= CHUNK_CHARACTERS:
                    break
        except UserError as error:
            failure = error  # what comes before it is kept
        if taken:
            passed += len(taken)
            reading = corpus.reading if failure is None else None  # where that file is closed
            yield Chunk(at, taken, None if reading is None else reading.read())
        if failure is not None:
            raise failure
        if not taken:
            return


def shuffled(corpus: Corpus, seed: int) -> Iterator[Document]:
    """The documents in a random order, in bounded memory: files, then documents in a buffer."""
    draw = random.Random(seed)
    buffer: list[Document] = []
    characters = 0
    mixed = corpus.reordered(draw)
    documents = mixed.documents()
    corpus.skipped, corpus.reading = mixed.skipped, mixed.reading
    for document in documents:
        buffer.append(document)
        characters += len(document.text)
        while len(buffer) > SHUFFLE_DOCUMENTS or characters > SHUFFLE_CHARACTERS:
            place = draw.randrange(len(buffer))
            buffer[place], buffer[-1] = buffer[-1], buffer[place]
            characters -= len(buffer[-1].text)
            yield buffer.pop()
    draw.shuffle(buffer)
    yield from buffer
