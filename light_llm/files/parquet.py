"""What a parquet file claims, compared with its size before anything is allocated.

A few bytes can claim any number: runs of equal values are stored as their length. Decoding
allocates what is claimed, so a claim must be one that an honest file could make.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from light_llm.errors import UserError
from light_llm.files import given
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

    Raises:
        UserError: as `given.open_regular`, `check_claims` and `check_pages`.
        pa.ArrowException, OSError: it is not a parquet file.
    """
    import pyarrow.parquet as pq

    with given.open_regular(path) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 8))
        length = int.from_bytes(stream.read(4), "little")
        if stream.read() == b"PAR1" and not footer_fits(length, size):
            raise UserError(f"{path}: claims a footer of {length:,} bytes in a file of {size:,}")
        stream.seek(0)
        with pq.ParquetFile(stream) as file:
            metadata, read = file.metadata, leaves(file.metadata, columns)
            check_claims(metadata, size, path, read)
            longest = 0
            for number in range(metadata.num_row_groups):
                for leaf in read:
                    column = metadata.row_group(number).column(leaf)
                    try:
                        longest = max(longest, check_pages(stream.fileno(), column))
                    except ValueError as error:
                        raise UserError(
                            f"{path}: row group {number} is corrupt ({error}); write it again"
                        ) from None
            yield Opened(file, longest)


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
    metadata: pq.FileMetaData, size: int, path: str | Path, columns: Iterable[int]
) -> None:
    """Check what the footer claims about columns, before they are read.

    Args:
        size: bytes of the file.
        columns: the numbers of the leaves that will be read.

    Raises:
        UserError: a column is said to lie outside the file, a number is negative, or there are more
            values or rows than an honest file of this size holds.
    """
    wanted = list(columns)
    rows = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows += (in_group := group.num_rows)
        for leaf in wanted:
            column = group.column(leaf)
            if not 0 <= in_group <= column.num_values <= MANY:
                _check_chunk(column, in_group, size, f"{path}: row group {number}")
    if rows != metadata.num_rows:
        raise UserError(
            f"{path}: its row groups claim {rows:,} rows and its footer {metadata.num_rows:,}; "
            "write it again"
        )
    _check_number(rows, size, f"{path}: claims", "rows")


def _check_chunk(column: pq.ColumnChunkMetaData, rows: int, size: int, where: str) -> None:
    values, length = column.num_values, column.total_compressed_size
    start = column.dictionary_page_offset or column.data_page_offset
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
    name = column.path_in_schema.partition(".")[0]
    _check_number(values, length, f"{where} claims", f"values of {name!r}")


def _check_number(number: int, length: int, claims: str, what: str) -> None:
    if number > max(MANY, PER_BYTE * length):
        raise UserError(
            f"{claims} {number:,} {what} in {length:,} bytes; more than {MANY:,} must not be more "
            f"than {PER_BYTE} a byte, or a few bytes would take all memory. If they are honest, "
            "write them in smaller row groups, and several files"
        )
