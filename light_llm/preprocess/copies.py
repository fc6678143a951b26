"""The list of the documents that --dedupe drops: for each file of the input, which, by number.

It has two files. `list` has a record for each document, in the order of the input; `index` says for
each file of the input where its records begin, and their checksum. So whoever reads one file of the
input reads, and checks, its records alone.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from light_llm.errors import UserError
from light_llm.files import given
from light_llm.files.remotefile import InputFile
from light_llm.preprocess.skipped import check_number
from light_llm.preprocess.stage import Damaged

if TYPE_CHECKING:
    import numpy as np

LIST, INDEX = "list", "index"
RECORD = [("number", "<u8"), ("hash", "<u8")]
"""The number of a document in its file, from 1, and the first 64 bits of the hash of its text."""
ENTRY = [("start", "<u8"), ("crc32", "<u4")]
"""Of a file of the input: its first record in the list, and the CRC-32 of its records."""
BLOCK = 2**16
"""Records that are read in one piece."""
AGAIN = "begin again with --overwrite (a run in parts: with --prepare --overwrite)"


def text_digest(text: str) -> bytes:
    """128 bits of BLAKE2b: texts with the same are taken to be the same."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


@dataclass(frozen=True)
class Found:
    """What a list holds, as the journal of a run or the plan of its parts notes it."""

    files: int
    """Of the input."""
    documents: int
    """How many are to be dropped."""
    crc32: int
    """Of the index."""

    @classmethod
    def parse(cls, row: Any) -> Found:
        """From JSON that anybody may have written.

        Raises:
            ValueError: it is something else.
        """
        found = cls(**row)
        for number in (found.files, found.documents, found.crc32):
            check_number(number)
        return found


class Copies:
    """Reads the list in `folder` that is `found`.

    Args:
        paths: of the files of the input, in its order.

    Raises:
        Damaged: the list is not the one that was found.
    """

    def __init__(self, folder: Path, found: Found, paths: Iterable[InputFile] = ()):
        import numpy as np

        self._folder, self._found = folder, found
        self._numbers = {path: number for number, path in enumerate(paths)}
        try:
            data = given.read_bytes(folder / INDEX, np.dtype(ENTRY).itemsize * found.files)
            size = given.check_regular(folder / LIST)
        except UserError as error:
            raise self._damaged(str(error)) from None
        if zlib.crc32(data) != found.crc32 or len(data) % np.dtype(ENTRY).itemsize:
            raise self._damaged("its index is not the one that was written (CRC-32)")
        if size != found.documents * np.dtype(RECORD).itemsize:
            raise self._damaged(f"it has {size:,} bytes")
        self._index = np.frombuffer(data, ENTRY)

    def of(self, path: InputFile) -> CopiesOfFile | None:
        """What is to be dropped of one file; None: nothing.

        Raises:
            Damaged: its records are not those that were written.
        """
        start, end = self._checked(self._numbers[path])
        return CopiesOfFile(self._blocks(start, end)) if start < end else None

    def check(self) -> None:
        """
        Raises:
            Damaged: a record is not the one that was written.
        """
        for number in range(len(self._index)):
            self._checked(number)

    def _checked(self, number: int) -> tuple[int, int]:
        """Where the records of a file begin and end; they are those that were written."""
        starts, last = self._index["start"], number + 1 == len(self._index)
        start = int(starts[number])
        end = self._found.documents if last else int(starts[number + 1])
        crc32 = 0
        for block in self._blocks(start, end):
            crc32 = zlib.crc32(block.tobytes(), crc32)
        if crc32 != self._index["crc32"][number]:
            raise self._damaged(f"its records of file {number} are not those that were written")
        return start, end

    def _blocks(self, start: int, end: int) -> Iterator[np.ndarray]:
        import numpy as np

        size = np.dtype(RECORD).itemsize
        for at in range(start, end, BLOCK):
            with given.open_regular(self._folder / LIST) as file:
                file.seek(at * size)
                yield np.frombuffer(file.read(min(BLOCK, end - at) * size), RECORD)

    def _damaged(self, what: str) -> Damaged:
        return Damaged(
            f"{self._folder}: is not the list of duplicates that this run began with: {what}; "
            f"{AGAIN}"
        )


class CopiesOfFile:
    """What is to be dropped of one file, for a reading of its documents in order."""

    def __init__(self, blocks: Iterator[np.ndarray]):
        self._records = (record for block in blocks for record in block.tolist())
        self._next = next(self._records, None)

    def has(self, number: int, source: str, text: str) -> bool:
        """Whether a document is to be dropped.

        Args:
            number: from 1; greater than before.

        Raises:
            UserError: it has another text than when it was found.
        """
        while self._next is not None and self._next[0] < number:  # of a reading that begins midway
            self._next = next(self._records, None)
        if self._next is None or self._next[0] != number:
            return False
        if int.from_bytes(text_digest(text)[:8], "little") != self._next[1]:
            raise UserError(
                f"{source}: has changed since duplicates were looked for, and the input must stay "
                f"as it is during a run; {AGAIN}"
            )
        return True
