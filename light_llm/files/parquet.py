"""What a parquet file claims, compared with its size before anything is allocated.

A few bytes can claim any number: runs of equal values are stored as their length. Decoding
allocates what is claimed, so a claim must be one that an honest file could make.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from light_llm.errors import UserError, one_line
from light_llm.files import given
from light_llm.files.chunks import Chunk, RowGroup, row_groups
from light_llm.files.pages import PER_BYTE, check_pages

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MANY = 2**26
"""Values of a column in a row group, and rows of a file, that are always accepted."""
# Beyond that, PER_BYTE for each byte that they take in the file. Text takes about one byte a token;
# what exceeds PER_BYTE is one value repeated, as in padding.


def footer_fits(length: int, size: int) -> bool:
    """Whether a footer of `length` bytes may be parsed in a file of `size`.

    Parsing takes about 250 bytes of memory per byte, so a long footer must be a small part of a
    long file.
    """
    return length + 12 <= size and length <= max(given.SMALL, size // 8)


@dataclass(frozen=True)
class Opened:
    file: pq.ParquetFile
    longest: int
    """Most bytes of a value. A value in a dictionary can be repeated in every row at no cost."""


@contextlib.contextmanager
def opened(path: Path, columns: str | None = None) -> Iterator[Opened]:
    """Open a parquet file and check its claims about `columns`: one column's name, or None for all.

    Checksums of pages are verified where the file has them.

    Raises:
        UserError: as `given.open_regular`, `check_claims` and `check_pages`; it is not a parquet
            file, or, inside, it turns out to be damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with given.open_regular(path) as stream:
        size, footer = _footer(stream, path)
        stream.seek(0)
        try:
            with pq.ParquetFile(stream, page_checksum_verification=True) as file:
                yield Opened(file, _check(file.metadata, footer, size, stream, path, columns))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            name = os.fsencode(path).decode("utf-8", "replace")
            reason = one_line(error)
            raise UserError(
                f"{name}: is not a parquet file that can be read: {reason}; get a whole copy of "
                "it, or leave it out"
            ) from None


def _check(
    metadata: pq.FileMetaData,
    footer: bytes,
    size: int,
    stream: BufferedReader,
    path: Path,
    columns: str | None,
) -> int:
    """Check what the footer and the pages of `columns` claim. Returns the longest of the pages.

    Raises:
        UserError: they claim what an honest file does not.
    """
    longest, read = 0, leaves(metadata, columns)
    try:
        groups = row_groups(footer, metadata.num_columns)
    except ValueError as error:
        raise UserError(f"{path}: the footer is corrupt ({error}); write it again") from None
    check_claims(groups, metadata.num_rows, size, path, read)
    for number, group in enumerate(groups):
        for leaf in read:
            try:
                longest = max(longest, check_pages(stream.fileno(), group.chunks[leaf]))
            except ValueError as error:
                raise UserError(
                    f"{path}: row group {number} is corrupt ({error}); write it again"
                ) from None
    return longest


def _footer(stream: BufferedReader, path: Path) -> tuple[int, bytes]:
    """Bytes of the file, and its footer without the eight bytes behind it; b"" where it has none.

    Raises:
        UserError: it is too long.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 8))
    length = int.from_bytes(stream.read(4), "little")
    if stream.read() != b"PAR1":
        return size, b""
    if not footer_fits(length, size):
        raise UserError(f"{path}: claims a footer of {length:,} bytes in a file of {size:,}")
    stream.seek(size - 8 - length)
    return size, stream.read(length)


def leaves(metadata: pq.FileMetaData, column: str | None) -> list[int]:
    """The numbers of the leaves that pyarrow reads for a column's name: those of a column `x.y` too
    where `x` is asked for, since it goes by dotted paths. The leaves of all columns for None."""
    paths = (metadata.schema.column(leaf).path for leaf in range(metadata.num_columns))
    return [i for i, path in enumerate(paths) if column in (None, path, path.partition(".")[0])]


def leaf_of(metadata: pq.FileMetaData, column: str) -> int:
    """The number of the first leaf of a top-level column that is there once.

    Raises:
        ValueError: several leaves have such a path, and the schema does not say which it is.
    """
    if len(named := leaves(metadata, column)) == 1:
        return named[0]
    schema = metadata.schema.to_arrow_schema()
    counts = [_num_leaves(field.type) for field in schema]
    if sum(counts) != metadata.num_columns:
        raise ValueError(f"{metadata.num_columns} leaf columns where the schema has {sum(counts)}")
    return sum(counts[: schema.names.index(column)])


def _num_leaves(kind: pa.DataType) -> int:
    """How many leaves a column of this type has."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return _num_leaves(kind.storage_type)
    if pa.types.is_dictionary(kind) or not kind.num_fields:
        return 1
    return sum(_num_leaves(kind.field(part).type) for part in range(kind.num_fields))


def check_claims(
    groups: Sequence[RowGroup], num_rows: int, size: int, path: str | Path, columns: Iterable[int]
) -> None:
    """Check what the footer claims about columns, before they are read.

    Args:
        num_rows: of the file, as the footer claims.
        size: bytes of the file.
        columns: the numbers of the leaves that will be read.

    Raises:
        UserError: a column is said to lie outside the file, a number is negative, or there are more
            values or rows than an honest file of this size holds.
    """
    wanted = list(columns)
    rows = 0
    for number, group in enumerate(groups):
        rows += group.rows
        for leaf in wanted:
            chunk = group.chunks[leaf]
            if not 0 <= group.rows <= chunk.num_values <= MANY:
                _check_chunk(chunk, group.rows, size, f"{path}: row group {number}")
    if rows != num_rows:
        raise UserError(
            f"{path}: its row groups claim {rows:,} rows and its footer {num_rows:,}; "
            "write it again"
        )
    _check_number(rows, size, f"{path}: claims", "rows")


def _check_chunk(chunk: Chunk, rows: int, size: int, where: str) -> None:
    values, start, length = chunk.num_values, chunk.start, chunk.length
    if min(values, rows, length, start) < 0 or start + length > size:
        raise UserError(
            f"{where}: its footer claims {length:,} bytes from byte {start:,} on with {values:,} "
            f"values, and the file has {size:,} bytes; write it again"
        )
    if rows > values:
        raise UserError(
            f"{where} claims {rows:,} rows and {values:,} values, fewer than one a row; write it "
            "again"
        )
    name = chunk.path.partition(".")[0]
    _check_number(values, length, f"{where} claims", f"values of {name!r}")


def _check_number(number: int, length: int, claims: str, what: str) -> None:
    if number > max(MANY, PER_BYTE * length):
        raise UserError(
            f"{claims} {number:,} {what} in {length:,} bytes; more than {MANY:,} must not be more "
            f"than {PER_BYTE} a byte, or a few bytes would take all memory. If they are honest, "
            "write them in smaller row groups, and several files"
        )
