"""The footer of a parquet file: what the file holds, without reading it."""

from __future__ import annotations

import functools
import os
import threading
import zlib
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from light_llm.errors import UserError, one_line
from light_llm.files import fetched, given, remote, urls
from light_llm.files.chunks import RowGroup, row_groups
from light_llm.files.parquet import footer_fits

MAGIC = b"PAR1"
TAIL = 64 * 2**10  # bytes of a remote shard that are asked for at first: most footers
# What pyarrow raises on a damaged file; names that are not text are a ValueError.
UNREADABLE = (pa.ArrowException, OSError, ValueError)


@dataclass(frozen=True)
class Footer:
    """What the footer of a shard says, and a checksum that recognises it."""

    path: str
    """Or its URL."""
    size: int
    crc32: int
    metadata: pq.FileMetaData
    """Of its schema and totals; `groups` says the rest (light_llm/files/chunks.py says why)."""
    groups: list[RowGroup]

    def place(self) -> str:
        """The path of the file, or of its copy, which is fetched if it is not here.

        Raises:
            UserError: it cannot be fetched.
        """
        return str(fetched.local(self.path)) if urls.is_url(self.path) else self.path

    def file(self) -> pq.ParquetFile:
        """The file itself; its footer is not parsed again, its page checksums are verified.

        Each thread keeps the last one open: it reads the row groups of a shard one after another.
        """
        if getattr(_open, "footer", None) is not self:
            place = self.place()
            given.check_regular(place, "the shard")
            _open.file = pq.ParquetFile(
                place, metadata=self.metadata, page_checksum_verification=True
            )
            _open.footer = self
        return _open.file


_open = threading.local()


def read_footer(path: str) -> Footer:
    """Read the footer of `path`; of a URL, only the end of the object, unless a copy is here.

    Raises:
        UserError: empty, truncated, unreadable, or not a parquet file.
    """
    if not urls.is_url(path):
        return _parsed(path, *_ends(path))
    fetched.look_again(path)
    if (copy := fetched.kept(path)) is not None:
        return _parsed(path, *_ends(str(copy)))
    return _parsed(path, *(_remote_ends(path) or _ends(str(fetched.local(path)))))


def _ends(path: str) -> tuple[int, bytes, bytes, bytes | None]:
    """(size, first 4 bytes, last 8, the footer with these 8 or None where it does not fit)."""
    try:
        with given.open_regular(path, "the shard") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            head = file.read(4)
            file.seek(max(0, size - 8))
            tail = file.read()
            length = int.from_bytes(tail[:4], "little")
            fits = footer_fits(length, size)
            file.seek(max(0, size - 8 - length) if fits else size)
            footer = file.read() if fits else None
    except OSError as error:
        raise UserError(f"{path}: the shard cannot be read: {error.strerror or error}") from None
    return size, head, tail, footer


def _remote_ends(url: str) -> tuple[int, bytes, bytes, bytes | None] | None:
    """The same of an object; None where its server gives no parts."""
    size = fetched.version(url).size
    if size < 12:
        return size, MAGIC[:size], b"", None
    end = remote.read_range(url, max(0, size - TAIL), size)
    if end is None:
        return None
    tail = end[-8:]
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or not footer_fits(length, size):
        return size, MAGIC, tail, None
    if length + 8 > len(end):
        end = remote.read_range(url, size - 8 - length, size) or b""
    return size, MAGIC, tail, end[len(end) - 8 - length :]


def _parsed(path: str, size: int, head: bytes, tail: bytes, footer: bytes | None) -> Footer:
    """
    Raises:
        UserError: as `read_footer`.
    """
    if size == 0:
        raise UserError(f"{path}: the shard is empty (0 bytes); write it again or remove it")
    if head == given.LFS[: len(MAGIC)]:
        raise UserError(f"{path}: is {given.POINTER}")
    if head != MAGIC:
        raise UserError(f"{path}: not a parquet file (it begins with {head!r}, not {MAGIC!r})")
    if size < 12 or tail[4:] != MAGIC:
        raise UserError(
            f"{path}: the shard is truncated (its {size} bytes do not end in a parquet footer); "
            "write it again or copy it whole"
        )
    try:
        if footer is None:
            length = int.from_bytes(tail[:4], "little")
            raise OSError(f"a footer of {length} bytes in a file of {size}")
        metadata = pq.read_metadata(pa.BufferReader(MAGIC + footer))
        metadata.schema.to_arrow_schema()
        groups = row_groups(footer[:-8], metadata.num_columns)
    except UNREADABLE as error:
        raise UserError(
            f"{path}: the footer is corrupt ({one_line(error)}); write the shard again"
        ) from None
    return Footer(path, size, zlib.crc32(footer), metadata, groups)


def reread_footer(path: str, crc32: int) -> Footer:
    """The footer of a shard that was indexed with this checksum. Footers in use are kept.

    Raises:
        UserError: the file is not the one that was indexed.
    """
    rule = "the shard is no longer the one that the run began with; put that one back, and resume"
    place = str(fetched.local(path)) if urls.is_url(path) else path
    try:
        stat = os.stat(place)
        footer = _kept_footer(path, place, stat.st_size, stat.st_mtime_ns)
    except (OSError, UserError) as error:
        raise UserError(f"{path}: {rule} ({error})") from None
    if footer.crc32 != crc32:
        raise UserError(f"{path}: {rule}")
    return footer


@functools.lru_cache(maxsize=16)
def _kept_footer(path: str, place: str, size: int, mtime_ns: int) -> Footer:
    return _parsed(path, *_ends(place))
