"""How many documents have a text that was there before, counted by hashes that a run keeps anyway.

The split hashes every text. The hashes of the documents of a shard pair lie in a small file, which
is on the disk before the journal names it, so that both say the same after a crash.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from light_llm.files import given
from light_llm.files.disk import make_folder, remove, sync, write_atomically
from light_llm.preprocess.notices import counted
from light_llm.preprocess.skipped import check_number
from light_llm.preprocess.stage import Damaged

if TYPE_CHECKING:
    import numpy as np

BYTES = 8
"""Of a hash."""
AT_ONCE = 2**24
"""Hashes in memory while duplicates are counted, about: 128 MiB, and as much while they are put
together."""
MORE = 1024
"""Hashes that are read beyond those that a range has on average."""


@dataclass(frozen=True)
class HashFile:
    """The hashes of the documents of a shard pair: each hash once, in ascending order."""

    path: Path
    hashes: int
    crc32: int

    @classmethod
    def parse(cls, path: Path, row: Any) -> HashFile:
        """From the JSON of a journal, which anybody may have written.

        Raises:
            ValueError: it does not say what the file holds.
        """
        if not isinstance(row, dict) or sorted(row) != ["crc32", "hashes"]:
            raise ValueError("a file of hashes must have crc32 and hashes")
        return cls(path, check_number(row["hashes"]), check_number(row["crc32"]))

    def row(self) -> dict[str, int]:
        """As a journal has it; `path` follows from the place in the journal."""
        return {"hashes": self.hashes, "crc32": self.crc32}


def write_hashes(path: Path, hashes: Sequence[np.ndarray]) -> HashFile:
    """Write a file of hashes, on the disk when this returns.

    Args:
        hashes: uint64 arrays, in any order.
    """
    import numpy as np

    data = np.unique(np.concatenate(hashes)).astype("<u8").tobytes()
    if not path.parent.is_dir():
        new = [each for each in (path.parent, *path.parent.parents) if not each.exists()]
        make_folder(path.parent)
        for folder in new:
            sync(folder.parent)
    write_atomically(path, data)
    return HashFile(path, len(data) // BYTES, zlib.crc32(data))


def drop_other_hashes(files: Iterable[HashFile], folder: Path) -> None:
    """Delete what is below `folder` and is not one of `files`: a journal does not name it."""
    known = {file.path for file in files}
    for path in [*folder.rglob("*")]:
        if path not in known and not (path.is_dir() and not path.is_symlink()):
            remove(path)


def check_hashes(files: Iterable[HashFile], remedy: str) -> None:
    """
    Raises:
        Damaged: a file is not on the disk, or its bytes are not those that a run wrote; the message
            advises `remedy`.
    """
    for file in files:
        reader = _Reader(file, remedy)
        reader.below(None, file.hashes)
        reader.check()


def count_distinct(files: Sequence[tuple[HashFile, str]]) -> int:
    """How many distinct hashes are in all files together, in passes over ranges of them.

    Hashes are spread evenly, and a file has each once, so a range of them takes `AT_ONCE` at most,
    about, whatever the texts are. A byte is read about once.

    Args:
        files: each with what the message of its damage advises.

    Raises:
        Damaged: as `check_hashes`.
    """
    import numpy as np

    readers = [_Reader(*file) for file in files]
    passes = max(1, -(-sum(file.hashes for file, _ in files) // AT_ONCE))
    distinct = 0
    for number in range(1, passes + 1):
        end = None if number == passes else 2**64 * number // passes
        pieces = [
            piece
            for reader, (file, _) in zip(readers, files, strict=True)
            for piece in reader.below(end, file.hashes // passes + MORE)
        ]
        if pieces:
            together = np.concatenate(pieces)
            del pieces
            together.sort()
            distinct += 1 + int(np.count_nonzero(together[1:] != together[:-1]))
    for reader in readers:
        reader.check()
    return distinct


class _Reader:
    """Reads a file of hashes piece by piece, to its end; the file is open only meanwhile."""

    def __init__(self, file: HashFile, remedy: str):
        self._file, self._remedy = file, remedy
        self._at = self._crc32 = 0
        size = file.path.lstat().st_size if file.path.is_file() else None
        if size != file.hashes * BYTES:
            self._refuse("is gone" if size is None else f"has {counted(size, 'byte')}")

    def below(self, end: int | None, block: int) -> list[np.ndarray]:
        """The next hashes, uint64 arrays: those below `end`, or all.

        Args:
            block: how many are read in one piece.
        """
        import numpy as np

        pieces = []
        with given.open_regular(self._file.path, "the file of hashes") as file:
            file.seek(self._at)
            while len(found := np.frombuffer(file.read(BYTES * max(1, block)), "<u8")):
                taken = found if end is None else found[: np.searchsorted(found, np.uint64(end))]
                self._crc32 = zlib.crc32(taken.tobytes(), self._crc32)
                self._at += BYTES * len(taken)
                if len(taken):
                    pieces.append(taken)
                if len(taken) < len(found):
                    break
        return pieces

    def check(self) -> None:
        """Check what was read, the whole file.

        Raises:
            Damaged: it is not what a run wrote.
        """
        if self._crc32 != self._file.crc32 or self._at != self._file.hashes * BYTES:
            self._refuse("its bytes are not those that the run wrote (CRC-32)")

    def _refuse(self, what: str) -> NoReturn:
        path, hashes = self._file.path, counted(self._file.hashes, "hash")
        raise Damaged(
            f"{path}: {what}; the hashes of the texts of a shard, {hashes}, must be there; "
            f"{self._remedy}"
        )
