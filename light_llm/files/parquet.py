"""What a parquet file claims, compared with its size before anything is allocated.

A few bytes can claim any number: runs of equal values are stored as their length. Decoding
allocates what is claimed, so a claim must be one that an honest file could make.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import TYPE_CHECKING, Any

from light_llm.errors import UserError, one_line
from light_llm.files import given
from light_llm.files.chunks import Chunk, RowGroup, row_groups
from light_llm.files.pages import PER_BYTE, check_pages
from light_llm.files.ranges import RemotePath
from light_llm.files.remotefile import Held, InputFile

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MANY = 2**26
"""Values of a column in a row group, and rows of a file, that are always accepted."""
BATCH_ROWS, BATCH_BYTES = 2**16, 2**30
"""The most that are decoded at once, unless the caller says otherwise."""
# Beyond MANY, PER_BYTE for each byte that they take in the file. Text takes about one byte a token;
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
    check: Callable[[int, Iterable[int]], int]
    """Checks the pages of some leaves in a row group, and returns the bytes of the longest."""

    def batches(
        self,
        column: str | None,
        most_rows: int = BATCH_ROWS,
        most_bytes: int = BATCH_BYTES,
        start: int = 0,
    ) -> Iterator[pa.RecordBatch]:
        """The rows from `start` on, of one column or (None) of all, in order.

        Row groups before that are not read.

        Args:
            most_bytes: of a batch, if each of its values were as long as the longest page. A value
                in a dictionary can be repeated in every row at no cost.

        Raises:
            UserError: as `opened`.
        """
        read = leaves(self.file.metadata, column)
        columns = None if column is None else [column]
        passed = 0
        for group in range(self.file.num_row_groups):
            passed += self.file.metadata.row_group(group).num_rows
            if passed <= start:
                continue
            longest = self.check(group, read)
            size = max(1, min(most_rows, most_bytes // max(1, longest)))
            before = max(0, start - (passed - self.file.metadata.row_group(group).num_rows))
            for batch in self.file.iter_batches(size, row_groups=[group], columns=columns):
                if before < batch.num_rows:
                    yield batch.slice(before)
                before = max(0, before - batch.num_rows)


@contextlib.contextmanager
def opened(path: InputFile, columns: str | None = None) -> Iterator[Opened]:
    """Open a parquet file and check its claims about `columns`: one column's name, or None for all.

    Its pages are checked as `Opened.batches` comes to them, their checksums too, where the file has
    them. Of a remote file each is fetched once.

    Raises:
        UserError: as `given.open_regular`, `check_claims` and `check_pages`; it is not a parquet
            file, or, inside, it turns out to be damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with contextlib.ExitStack() as stack:
        held: Held | None = None
        stream: BufferedReader[Any]
        if isinstance(path, RemotePath):
            held = stack.enter_context(contextlib.closing(Held(path)))
            stream = held.stream
        else:
            stream = stack.enter_context(given.open_regular(path))
        size, footer = _footer(stream, path)
        stream.seek(0)
        try:
            with pq.ParquetFile(stream, page_checksum_verification=True) as file:
                read = leaves(file.metadata, columns)
                groups = _groups(file.metadata, footer, size, path, read)
                check = functools.partial(_check_group, groups, path, held, stream)
                yield Opened(file, check)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            name = os.fsencode(str(path)).decode("utf-8", "replace")
            reason = one_line(error)
            raise UserError(
                f"{name}: is not a parquet file that can be read: {reason}; get a whole copy of "
                "it, or leave it out"
            ) from None


def _groups(
    metadata: pq.FileMetaData, footer: bytes, size: int, path: InputFile, read: Sequence[int]
) -> list[RowGroup]:
    """The row groups, after a check of what the footer claims of the leaves `read`.

    Raises:
        UserError: it claims what an honest file does not.
    """
    try:
        groups = row_groups(footer, metadata.num_columns)
    except ValueError as error:
        raise UserError(f"{path}: the footer is corrupt ({error}); write it again") from None
    check_claims(groups, metadata.num_rows, size, path, read)
    return groups


def _check_group(
    groups: Sequence[RowGroup],
    path: InputFile,
    held: Held | None,
    stream: BufferedReader[Any],
    number: int,
    read: Iterable[int],
) -> int:
    """Check what the pages of some leaves claim. Returns the bytes of the longest.

    Of a remote file these are held from there on, and those of the group before are not.

    Raises:
        UserError: they claim what an honest file does not.
    """
    longest = 0
    read_at = functools.partial(os.pread, stream.fileno()) if held is None else held.read_at
    if held is not None:
        held.drop()
    for leaf in read:
        chunk = groups[number].chunks[leaf]
        if held is not None:
            held.hold(chunk.start, chunk.length)
        try:
            longest = max(longest, check_pages(read_at, chunk))
        except ValueError as error:
            raise UserError(
                f"{path}: row group {number} is corrupt ({error}); write it again"
            ) from None
    return longest


def _footer(stream: BufferedReader[Any], path: InputFile) -> tuple[int, bytes]:
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
    groups: Sequence[RowGroup],
    num_rows: int,
    size: int,
    path: str | InputFile,
    columns: Iterable[int],
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
            inside = 0 <= chunk.start <= chunk.start + chunk.length <= size
            if not inside or not 0 <= group.rows <= chunk.num_values <= MANY:
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
