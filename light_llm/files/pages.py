"""The headers of the pages of a parquet file: how many values and bytes each page claims.

The footer and the pages each claim counts, and a reader allocates what the pages claim. A page
header is a struct in Thrift's compact protocol, before the bytes of the page.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow.parquet as pq

LARGE = 2**28
"""Bytes of a column in a row group, decompressed, that are always accepted."""
PER_BYTE = 256
"""Beyond that, the limit for each compressed byte."""
DICTIONARY = 7
COUNTING = (5, DICTIONARY, 8)
"""Fields of a page header: the structs whose field 1 counts values."""
_USUAL, _LONGEST = 256, 2**16  # bytes of a header
_DEEPEST = 4


def check_pages(descriptor: int, column: pq.ColumnChunkMetaData) -> int:
    """Check the pages of a column in a row group, before it is decoded.

    Args:
        descriptor: of the open file.

    Returns the bytes of its largest page, decompressed; no value is larger.

    Raises:
        ValueError: its pages hold more values than the footer says or claim too many bytes, or a
            page header cannot be read.
    """
    at = column.dictionary_page_offset or column.data_page_offset
    end = at + column.total_compressed_size
    values = largest = bytes_so_far = packed_so_far = 0
    while values < column.num_values and at < end:
        header, at = _header(descriptor, at)
        size, packed = _number(header, 2), _number(header, 3)
        counts = {kind: _number(header[kind], 1) for kind in COUNTING if kind in header}
        count = max(counts.values(), default=0)
        bytes_so_far, packed_so_far = bytes_so_far + size, packed_so_far + packed
        too_large = bytes_so_far > max(LARGE, PER_BYTE * packed_so_far)
        if min(size, packed, *counts.values()) < 0 or too_large:
            raise ValueError(
                f"its pages claim {bytes_so_far:,} bytes in {packed_so_far:,} compressed ones, and "
                f"{LARGE:,} or {PER_BYTE} a byte are the limit"
            )
        values += 0 if DICTIONARY in counts else count
        if max(values, count) > column.num_values:
            raise ValueError(
                f"its pages hold more than the {column.num_values:,} values of the footer"
            )
        largest = max(largest, size)
        at += packed
    return largest


def _number(fields: Any, number: int) -> int:
    """A field that must be a number; -1 if it is not, or is absent."""
    value = fields.get(number) if isinstance(fields, dict) else None
    return value if isinstance(value, int) else -1


def _header(descriptor: int, at: int) -> tuple[dict[int, Any], int]:
    """The fields of the page header at byte `at`, and where it ends."""
    for length in (_USUAL, _LONGEST):
        data = os.pread(descriptor, length, at)
        try:
            fields, used = _struct(data, 0, _DEEPEST)
        except IndexError:  # it goes on
            continue
        except ValueError:
            break
        return fields, at + used
    raise ValueError(f"no page begins at byte {at:,}")


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """The fields of a struct by their numbers, and where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    while (head := data[at]) != 0:
        at += 1
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            number, at = _integer(data, at)
        value: Any = None
        if kind in (4, 5, 6):
            value, at = _integer(data, at)
        elif kind == 12 and depth:
            value, at = _struct(data, at, depth - 1)
        elif kind == 8:
            length, at = _varint(data, at)
            at += length
        elif kind in (3, 7):
            at += 1 if kind == 3 else 8
        elif kind not in (1, 2):  # true and false, which are their kind
            raise ValueError(f"no page header has a field of kind {kind}")
        fields[number] = value
    return fields, at + 1


def _integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
