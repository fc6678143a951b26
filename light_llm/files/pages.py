"""The headers of the pages of a parquet file: how many values and bytes each page claims.

The footer and the pages each claim counts, and a reader allocates what the pages claim. A page
header is a struct in Thrift's compact protocol, before the bytes of the page.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from light_llm.files.chunks import Chunk
from light_llm.files.thrift import Wanted, struct

LARGE = 2**28
"""Bytes of a column in a row group, decompressed, that are always accepted."""
PER_BYTE = 256
"""Beyond that, the limit for each compressed byte."""
DICTIONARY = 7
COUNTING = (5, DICTIONARY, 8)
"""Fields of a page header: the structs whose field 1 counts values."""
_USUAL, _LONGEST = 256, 2**16  # bytes of a header
_DEEPEST = 4
_HEADER: Wanted = {2: None, 3: None} | {kind: {1: None} for kind in COUNTING}


def check_pages(read_at: Callable[[int, int], bytes], column: Chunk) -> int:
    """Check the pages of a column in a row group, before it is decoded.

    Args:
        read_at: gives so many bytes of the file, from a place on.

    Returns the bytes of its largest page, decompressed; no value is larger.

    Raises:
        ValueError: its pages hold more values than the footer says or claim too many bytes, or a
            page header cannot be read.
    """
    at = column.start
    end = at + column.length
    values = largest = bytes_so_far = packed_so_far = 0
    while values < column.num_values and at < end:
        header, at = _header(read_at, at)
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


def _header(read_at: Callable[[int, int], bytes], at: int) -> tuple[dict[int, Any], int]:
    """The fields of the page header at byte `at`, and where it ends."""
    for length in (_USUAL, _LONGEST):
        data = read_at(length, at)
        try:
            fields, used = struct(data, 0, _HEADER, _DEEPEST)
        except IndexError:  # it goes on
            continue
        except ValueError:
            break
        return fields, at + used
    raise ValueError(f"no page begins at byte {at:,}")
