"""--dedupe exact: a reading of the input that finds the documents whose text an earlier one has.

All is done in bounded memory, whatever the input is. The hash of each document goes to one of many
files, by its first bits, and those of a file that is too large to be compared at once to further
ones, by the next bits. Each of these is then read by itself: all copies of a text are in one. What
is found goes to files again, by its place in the input, and from these to the list in its order.
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from light_llm.errors import UserError
from light_llm.files.disk import create, flush, naming, remove, sync
from light_llm.preprocess.config import PreprocessConfig
from light_llm.preprocess.copies import ENTRY, INDEX, LIST, RECORD, Copies, Found, text_digest
from light_llm.preprocess.corpus import Corpus, FileCorpus
from light_llm.preprocess.journal import Journal
from light_llm.preprocess.opening import Reading, size_of
from light_llm.preprocess.progress import Progress
from light_llm.preprocess.publication import Stage
from light_llm.preprocess.stage import COPIES

if TYPE_CHECKING:
    import numpy as np

BITS = 8
"""The hashes go to 2 to this power files."""
BATCH = 2**17
"""Documents whose hashes are kept before they are written."""
AT_ONCE = 2**20
"""Hashes in memory while copies are looked for: with all that is made of them some 200 MB."""
HASHED = [("high", "<u8"), ("low", "<u8"), ("ordinal", "<u8")]
"""The hash of a text, and the place of its document in the whole input."""
PLACED = [("ordinal", "<u8"), ("high", "<u8")]


def without_copies(
    config: PreprocessConfig, stage: Stage, journal: Journal, corpora: Sequence[Corpus]
) -> Sequence[Corpus]:
    """The corpora without the documents that `config` drops, which are looked for unless the
    journal says that they are found.

    Raises:
        UserError: the input cannot be read, or changed meanwhile.
    """
    if config.dedupe is None:
        return corpora
    (corpus,) = corpora
    assert isinstance(corpus, FileCorpus)
    assert journal.asked is not None
    if journal.copies is None:
        found = find_copies(corpus, stage.path / COPIES, config.allow_skipped)
        if corpus.identity() != journal.asked["sources"][corpus.name]:
            raise UserError(
                f"{', '.join(corpus.inputs)}: changed while duplicates were looked for, and the "
                "input must stay as it is during a run; repeat the command"
            )
        journal.find(found)
    return [deduped(corpus, stage.path, journal.copies)]


def deduped(corpus: FileCorpus, stage: Path, found: Found | None) -> FileCorpus:
    """The corpus without the documents that were found; None: none were looked for.

    Raises:
        Damaged: the list of them is not the one that was found.
    """
    if found is None:
        return corpus
    copies = Copies(stage / COPIES, found, [file.path for file in corpus.files])
    return dataclasses.replace(corpus, copies=copies)


def find_copies(corpus: FileCorpus, folder: Path, allow_skipped: bool) -> Found:
    """List in `folder` all documents whose text an earlier one has, on the disk when this returns.

    Raises:
        UserError: the input cannot be read; or most of it is not text, unless `allow_skipped`.
    """
    remove(folder)
    hashes, places = folder / "hashes", folder / "places"
    for each in (hashes, places):
        each.mkdir(parents=True)
    reader = dataclasses.replace(corpus)  # what it skips is counted again later
    with Progress("looking for duplicates") as progress, naming(folder):
        ends = _hash_all(reader, hashes, progress)
        if not allow_skipped:
            reader.check_skipped(reader.skipped)
        for path in sorted(hashes.iterdir()):
            for some in _copies_in(path, folder / "ranges"):
                _append(places, some, some["ordinal"] // AT_ONCE)
            path.unlink()
        found = _write_list(folder, places, ends)
    for each in (hashes, places):
        remove(each)
    flush(folder)
    sync(folder.parent)
    return found


def _hash_all(corpus: FileCorpus, folder: Path, progress: Progress) -> np.ndarray:
    """Write the hashes of all documents to files in `folder`; returns uint64 [files], the place in
    the whole input of the last document of each file."""
    import numpy as np

    sizes = [size_of(file.path) for file in corpus.files]
    reading = Reading(sum(sizes))
    digests, ordinals, ends = bytearray(), array("Q"), array("Q")

    def write() -> None:
        if ordinals:
            records = np.empty(len(ordinals), HASHED)
            halves = np.frombuffer(bytes(digests), "<u8").reshape(-1, 2)
            records["high"], records["low"] = halves.T
            records["ordinal"] = ordinals
            _append(folder, records, records["high"] >> np.uint64(64 - BITS))
            digests.clear()
            del ordinals[:]
        progress.show_read(reading.read(), reading.total)

    last = 0
    for file, size in zip(corpus.files, sizes, strict=True):
        before = last
        for number, document in corpus.usable(file, reading):
            last = before + number
            digests += text_digest(document.text)
            ordinals.append(last)
            progress.advance(documents=1, characters=len(document.text))
            if len(ordinals) >= BATCH:
                write()
        reading.end(size)
        ends.append(last)
    write()
    return np.frombuffer(ends, np.uint64)


def _append(folder: Path, records: np.ndarray, to: np.ndarray) -> None:
    """Append records to the files in `folder` whose numbers `to` says, in their order."""
    import numpy as np

    order = np.argsort(to, kind="stable")
    records, to = records[order], to[order]
    cuts = [0, *(np.flatnonzero(to[1:] != to[:-1]) + 1).tolist(), len(to)]
    for start, end in itertools.pairwise(cuts):
        with (folder / f"{int(to[start]):020d}").open("ab") as file:
            file.write(records[start:end].tobytes())


def _copies_in(path: Path, ranges: Path) -> Iterator[np.ndarray]:
    """The places of all but the first document of each text, of the hashes in a file.

    A file with many is cut into ranges of hashes first, which are files in the folder `ranges`
    meanwhile. So there are `AT_ONCE` distinct ones in memory at most, about, and as many more,
    however often a text occurs; and a hash is read twice at most, however many there are.
    """
    import numpy as np

    number = -(-path.stat().st_size // (AT_ONCE * np.dtype(HASHED).itemsize))
    if number < 2:
        yield from _repeated(path)
        return
    ranges.mkdir()
    starts = np.array([2**64 * each // number for each in range(1, number)], np.uint64)
    for block in _blocks(path):
        rest = block["high"] << np.uint64(BITS)  # the other bits are the file's
        _append(ranges, block, np.searchsorted(starts, rest, side="right"))
    for each in sorted(ranges.iterdir()):
        yield from _repeated(each)
        each.unlink()
    ranges.rmdir()


def _repeated(path: Path) -> Iterator[np.ndarray]:
    """The places of all but the first document of each text, of the hashes in a small range."""
    import numpy as np

    first = np.empty(0, HASHED)
    for block in _blocks(path):
        together = np.concatenate([first, block])
        together = together[np.lexsort((together["low"], together["high"]))]  # stable
        again = np.zeros(len(together), bool)
        again[1:] = together["high"][1:] == together["high"][:-1]
        again[1:] &= together["low"][1:] == together["low"][:-1]
        places = np.empty(int(again.sum()), PLACED)
        for name in ("ordinal", "high"):
            places[name] = together[name][again]
        if len(places):
            yield places
        first = together[~again]


def _blocks(path: Path) -> Iterator[np.ndarray]:
    import numpy as np

    with path.open("rb") as file:
        while data := file.read(AT_ONCE * np.dtype(HASHED).itemsize):
            yield np.frombuffer(data, HASHED)


def _write_list(folder: Path, places: Path, ends: np.ndarray) -> Found:
    """Write the list and its index from the places that were found."""
    import numpy as np

    starts = np.concatenate([np.zeros(1, np.uint64), ends[:-1]])
    index = np.zeros(len(ends), ENTRY)
    counts = np.zeros(len(ends), np.uint64)
    with create(folder / LIST) as file:
        for path in sorted(places.iterdir()):
            some = np.fromfile(path, PLACED)
            some.sort(order="ordinal")
            files = np.searchsorted(ends, some["ordinal"])
            records = np.empty(len(some), RECORD)
            records["number"] = some["ordinal"] - starts[files]
            records["hash"] = some["high"]
            file.write(records.tobytes())
            which, begins, lengths = np.unique(files, return_index=True, return_counts=True)
            counts[which] += lengths.astype(np.uint64)
            for number, begin, length in zip(which, begins, lengths, strict=True):
                own = records[begin : begin + length].tobytes()
                index["crc32"][number] = zlib.crc32(own, int(index["crc32"][number]))
            path.unlink()
    index["start"][1:] = np.cumsum(counts)[:-1]
    data = index.tobytes()
    with create(folder / INDEX) as file:
        file.write(data)
    return Found(len(ends), int(counts.sum()), zlib.crc32(data))
