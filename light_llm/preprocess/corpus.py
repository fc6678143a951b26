"""What a run reads: usable documents, in an order that never changes, from any place.

A corpus gives its documents and says after each of them where it is (`here`), as JSON. Given that
place again, it continues from there, which lets an interrupted run continue.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from light_llm.errors import UserError
from light_llm.files.remotefile import AHEAD, InputFile, expect
from light_llm.preprocess.copies import Copies
from light_llm.preprocess.files import SourceFile
from light_llm.preprocess.kinds import kind_of_binary, remedy
from light_llm.preprocess.opening import Mark, Reading, is_compressed, printable, size_of, state_of
from light_llm.preprocess.rows import RowText
from light_llm.preprocess.skipped import Skipped, check_number
from light_llm.preprocess.sources import Document, NotText, read_file

COMPRESSED = 4  # characters per byte of a compressed file, about


class Corpus(Protocol):
    """The usable documents of one source."""

    skipped: Skipped
    """What the latest reading skipped so far."""
    reading: Reading | None
    """How far the latest reading is, if that is known."""

    @property
    def name(self) -> str:
        """The subfolder of the output that it goes to; "" for the output itself."""

    def documents(self, place: Any = None) -> Iterator[Document]:
        """All documents, or those after the `place` that `here` gave.

        Raises:
            UserError: while iterating, a source that cannot be read; names line or row.
        """

    def here(self) -> Any:
        """The place of the latest reading, after the last document that it gave."""

    def sample(self, characters: int) -> Iterator[Document]:
        """Documents with about `characters` characters in total at most, from the whole corpus."""

    def reordered(self, draw: random.Random) -> Corpus:
        """The same corpus with its files in a random order."""

    def identity(self) -> dict[str, Any]:
        """What identifies this corpus and its present state, as JSON."""

    def describe(self) -> str:
        """What was read, for the message that it has no documents."""


@contextlib.contextmanager
def believable() -> Iterator[None]:
    """Around the reading of a place from a journal.

    Raises:
        UserError: it is not a place.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"the stopped run's place in its input is not valid ({error!r}); begin again with "
            "--overwrite"
        ) from None


class _Place(NamedTuple):
    """Behind a document of the files."""

    file: int = 0
    passed: int = 0
    """Documents of the file that are before it, skipped ones included."""
    mark: Mark | None = None
    """Where the next begins, if the file can be read from there."""

    def as_json(self) -> list[int]:
        return [self.file, self.passed, *(self.mark or ())]

    @classmethod
    def parse(cls, numbers: Any) -> _Place:
        """
        Raises:
            ValueError: these are no numbers of a place.
        """
        file, passed, *mark = map(check_number, numbers)
        return cls(file, passed, Mark(*mark) if mark else None)


@dataclass
class FileCorpus:
    """The documents of `files`, in order."""

    files: Sequence[SourceFile]
    rows: RowText
    min_length: int = 0
    inputs: tuple[str, ...] = ()
    name: str = ""
    copies: Copies | None = None
    """What is dropped, since an earlier document has the same text."""
    skipped: Skipped = field(default_factory=Skipped, init=False)
    reading: Reading | None = field(default=None, init=False)
    _at: _Place = field(default_factory=_Place, init=False)

    def __iter__(self) -> Iterator[Document]:
        return self.documents()

    def documents(self, place: Any = None) -> Iterator[Document]:
        with believable():
            self.skipped = Skipped() if place is None else Skipped.parse(place["skipped"])
            at = _Place() if place is None else _Place.parse(place["at"])
        self._at = at
        sizes = [size_of(file.path) for file in self.files]
        self.reading = Reading(sum(sizes), finished=sum(sizes[: at.file]))
        return self._from(at, sizes, self.reading)

    def _from(self, start: _Place, sizes: Sequence[int], reading: Reading) -> Iterator[Document]:
        for number in range(start.file, len(self.files)):
            passed, mark = (start.passed, start.mark) if number == start.file else (0, None)
            expect([file.path for file in self.files[number : number + 1 + AHEAD]])
            for index, document in self.usable(self.files[number], reading, passed, mark):
                self._at = _Place(number, index, reading.mark)
                yield document
            reading.end(sizes[number])

    def usable(
        self,
        file: SourceFile,
        reading: Reading | None = None,
        passed: int = 0,
        mark: Mark | None = None,
    ) -> Iterator[tuple[int, Document]]:
        """The documents of a file that are taken, each with its number among all of the file, from
        1; without the first `passed` of all, behind which `mark` is. The others are counted as
        skipped.

        Raises:
            UserError: as `read`.
        """
        copies = None if self.copies is None else self.copies.of(file.path)
        documents = self.read(file, reading, passed, mark)
        for number, document in enumerate(documents, start=passed + 1):
            if not self.skipped.takes(document.text, self.min_length):
                continue
            if copies is not None and copies.has(number, *document):
                self.skipped.duplicate += 1
                continue
            yield number, document

    def here(self) -> Any:
        return {"at": self._at.as_json(), "skipped": dataclasses.asdict(self.skipped)}

    def sample(self, characters: int) -> Iterator[Document]:
        """From the start of each file, as many documents as its share of the bytes allows."""
        self.skipped = Skipped()
        weights = [_weight(file.path) for file in self.files]
        whole = sum(weights)
        taken = passed = 0
        for file, weight in zip(self.files, weights, strict=True):
            passed += weight
            allowed = characters * (1 if whole <= characters else passed / whole)
            if taken >= allowed:
                continue
            for _, document in self.usable(file):
                yield document
                taken += len(document.text)
                if taken >= allowed:
                    break

    def reordered(self, draw: random.Random) -> FileCorpus:
        return dataclasses.replace(self, files=draw.sample(self.files, len(self.files)))

    def identity(self) -> dict[str, Any]:
        lines = []
        for file in self.files:
            state = state_of(file.path)
            lines.append([printable(file.path), size_of(file.path), state])
        digest = hashlib.sha256(json.dumps(lines).encode()).hexdigest()
        return {"files": len(lines), "digest": digest}

    def check_skipped(self, skipped: Skipped) -> None:
        """
        Args:
            skipped: by a reading of this corpus, to its end or not.

        Raises:
            UserError: most of the bytes are in files that are not text.
        """
        whole = sum(size_of(file.path) for file in self.files)
        if 2 * skipped.bytes > whole:
            raise UserError(
                f"{', '.join(self.inputs)}: most of it is not text: {skipped.binary:,} of "
                f"{len(self.files):,} files ({skipped.told_kinds()}), with {skipped.bytes:,} of "
                f"{whole:,} bytes, such as {skipped.examples[0]}. Choose the files that are meant "
                "with --include, --exclude or another --input; --allow-skipped goes on without "
                f"those that are not text{skipped.remedies()}"
            )

    def describe(self) -> str:
        skipped = self.skipped
        number = len(self.files)
        return (
            f"{', '.join(self.inputs)}: of {number} {'file' if number == 1 else 'files'} "
            f"{skipped.binary} are not text"
            + (f" ({skipped.told_kinds()}){skipped.remedies()}" if skipped.binary else "")
        )

    def read(
        self,
        file: SourceFile,
        reading: Reading | None = None,
        passed: int = 0,
        mark: Mark | None = None,
    ) -> Iterator[Document]:
        """The documents of one of the files, whatever they hold, as `read_file` gives them.

        Raises:
            UserError: it cannot be read, or is named and no text; others are counted as skipped.
        """
        try:
            yield from read_file(file.path, self.rows, reading, passed, mark)
        except NotText as error:
            kind = kind_of_binary(file.path, error.encoded)
            if file.named:
                mend = f"{told}, or " if (told := remedy(kind)) else ""
                raise UserError(
                    f"{file.path}: is not UTF-8 text ({error}); {mend}leave it out"
                ) from None
            self.skipped.leave_out(file.path, kind)


def _weight(path: InputFile) -> int:
    """About how many characters a file has."""
    packed = is_compressed(path) or path.name.lower().endswith(".parquet")
    return size_of(path) * (COMPRESSED if packed else 1)
