"""Shards: parquet files of tokenized documents, each written atomically."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from light_llm.errors import UserError
from light_llm.files import given
from light_llm.files.disk import create, sync
from light_llm.files.parquet import opened
from light_llm.preprocess.schema import LENGTH, SOURCE, TOKENS, schema

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from light_llm.preprocess.rowbatch import RowBatch

ROW_GROUP_DOCUMENTS = 1024
ROW_GROUP_TOKENS = 2_000_000
WRITE_AT_ONCE = 2**22
"""Bytes: each write of Arrow to a file of Python waits for the lock of Python."""
TEMPORARY = ".writing"
SHARD_NAME = re.compile(r"shard_\d+\.parquet")
_FILE = re.compile(rf"(?:(?!\.)[^/\0]{{1,255}}/)?(?:train|val)/{SHARD_NAME.pattern}")


@dataclass(frozen=True)
class Shard:
    """A shard that is on the disk."""

    file: str
    """Below the output, with slashes."""
    documents: int
    tokens: int
    characters: int
    bytes: int
    sha256: str

    @classmethod
    def parse(cls, row: Any) -> Shard:
        """From the JSON of a journal or a manifest, which anybody may have written.

        Raises:
            ValueError: its file is not where a run puts shards, or a count is below 0 or no number.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(row, dict) or sorted(row) != sorted(names):
            raise ValueError(f"a shard must have {', '.join(names)}")
        if not is_shard_file(row["file"]) or not isinstance(row["sha256"], str):
            raise ValueError(f"{row['file']!r} is not where a run puts a shard")
        for name in ("documents", "tokens", "characters", "bytes"):
            if type(row[name]) is not int or not 0 <= row[name] < 2**63:
                raise ValueError(f"{name} must be a number from 0 on")
        return cls(**row)


def is_shard_file(text: Any) -> bool:
    """Whether a run writes shards with this name: train/shard_00000.parquet, PART/val/…"""
    return isinstance(text, str) and _FILE.fullmatch(text) is not None


def sha256(path: Path) -> str:
    """The digest of a file's bytes, in hexadecimal."""
    with given.open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def counts(path: Path) -> tuple[int, int]:
    """How many documents and tokens a shard holds, by its column of lengths.

    Raises:
        UserError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    with opened(path, LENGTH) as shard:
        schema = shard.file.schema_arrow
        if LENGTH not in schema.names or not pa.types.is_integer(schema.field(LENGTH).type):
            raise UserError(f"{path}: is not a shard that a run wrote: it has no column {LENGTH!r}")
        documents, tokens = 0, 0
        for batch in shard.batches(LENGTH):
            documents += batch.num_rows
            tokens += pc.sum(batch.column(0)).as_py() or 0
    return documents, tokens


class ShardWriter:
    """Writes documents to root/part/shard_00000.parquet, shard_00001.parquet, …

    Equal documents in equal order give equal bytes.
    """

    def __init__(
        self,
        root: Path,
        part: str,
        number: int = 0,
        check: Callable[[], None] = lambda: None,
    ):
        """
        Args:
            number: the first shard's number.
            check: called before a file is made; raises if `root` is no longer ours.
        """
        self.root = root
        self.part = part
        self.number = number
        self._check = check
        self._writer: pq.ParquetWriter | None = None
        self._file: pa.BufferedOutputStream | None = None
        self._start()

    def _start(self) -> None:
        self._rows: list[pa.RecordBatch] = []
        self._row_documents = self._row_tokens = 0
        self._documents = self._tokens = self._characters = 0

    def add(self, rows: RowBatch) -> None:
        """Write documents, or keep them until there is a row group of them."""
        self._documents += len(rows)
        self._tokens += int(rows.tokens.sum())
        self._characters += int(rows.characters.sum())
        while len(rows):
            taken = self._room(rows)
            self._rows.append(rows.columns.slice(0, taken))
            self._row_documents += taken
            self._row_tokens += int(rows.tokens[:taken].sum())
            if self._row_documents >= ROW_GROUP_DOCUMENTS or self._row_tokens >= ROW_GROUP_TOKENS:
                self._write_row_group()
            rows = rows.slice(taken, len(rows))

    def _room(self, rows: RowBatch) -> int:
        """How many of them the row group takes: one more than fit, if tokens fill it."""
        import numpy as np

        full = np.searchsorted(np.cumsum(rows.tokens), ROW_GROUP_TOKENS - self._row_tokens)
        return min(len(rows), ROW_GROUP_DOCUMENTS - self._row_documents, int(full) + 1)

    def close(self) -> Shard | None:
        """Complete the open shard and move it to its name, on disk. None: it has no documents."""
        if self._rows:
            self._write_row_group()
        if self._writer is None or self._file is None:
            return None
        self._writer.close()
        self._file.close()
        self._writer = self._file = None
        path = self._path()
        temporary = path.with_name(path.name + TEMPORARY)
        sync(temporary)
        temporary.rename(path)
        for folder in (path.parent, *path.parent.parents):  # a new folder is an entry of its parent
            sync(folder)
            if folder == self.root:
                break
        digest = sha256(path)
        shard = Shard(
            f"{self.part}/{path.name}",
            self._documents,
            self._tokens,
            self._characters,
            path.stat().st_size,
            digest,
        )
        self.number += 1
        self._start()
        return shard

    def drop(self) -> None:
        """Close the open shard, if there is one, as it is: it never gets its name."""
        import pyarrow as pa

        for each in (self._writer, self._file):
            if each is not None:
                with contextlib.suppress(OSError, pa.ArrowException):  # the run tells of its disk
                    each.close()
        self._writer = self._file = None

    def _path(self) -> Path:
        return self.root / self.part / f"shard_{self.number:05d}.parquet"

    def _write_row_group(self) -> None:
        import pyarrow as pa

        if self._writer is None:
            self._writer = self._open()
        # in one piece: the pages of a file do not depend on how its rows came
        self._writer.write_table(pa.Table.from_batches(self._rows, schema()).combine_chunks())
        self._rows, self._row_documents, self._row_tokens = [], 0, 0

    def _open(self) -> pq.ParquetWriter:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._check()
        path = self._path()
        path.parent.mkdir(parents=True, exist_ok=True)
        # pyarrow needs names in UTF-8, but takes an open file with any name
        file = pa.PythonFile(create(path.with_name(path.name + TEMPORARY)), "w")
        self._file = pa.BufferedOutputStream(file, WRITE_AT_ONCE)
        return pq.ParquetWriter(
            self._file,
            schema(),
            compression="zstd",
            use_dictionary=[SOURCE, f"{TOKENS}.list.element"],
            write_statistics=True,
            write_page_checksum=True,
        )
