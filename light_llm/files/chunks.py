"""The footer of a parquet file -> what it says of each column in each row group.

pyarrow reads this too, but where one number of a footer contradicts another, its accessors of row
groups and columns end the process (std::terminate), which no `except` sees. So none is called.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from light_llm.files.thrift import Wanted, strings, struct

_STATISTICS: Wanted = dict.fromkeys((1, 2, 3, 5, 6))
_COLUMN: Wanted = {**dict.fromkeys((1, 3, 5, 7, 9, 11)), 12: _STATISTICS}
_FOOTER: Wanted = {4: {1: {3: _COLUMN, 8: {}}, 3: None}, 7: {1: {}}}
_WIDTHS = {1: 4, 2: 8}
"""Bytes of a value by its physical type: INT32, INT64. Other types' bounds are of no use here."""


class Chunk(NamedTuple):
    """A column in a row group."""

    name: bytes
    """A list of strings, as the footer has it; see `path`."""
    num_values: int
    start: int
    """Byte of its first page."""
    length: int
    """Bytes of its pages, compressed."""
    null_count: int | None
    bounds: tuple[int, int] | None
    """The least and the largest value, where these are integers that the footer tells."""

    @property
    def path(self) -> str:
        """Of its leaf, dotted: `tokens.list.element`."""
        try:
            return b".".join(strings(self.name)).decode("utf-8", "replace")
        except (IndexError, ValueError):
            return "?"


class RowGroup(NamedTuple):
    rows: int
    chunks: tuple[Chunk, ...]
    """By the number of their leaf."""


def row_groups(footer: bytes, leaves: int) -> list[RowGroup]:
    """
    Args:
        footer: its bytes, without the length and the magic behind it.
        leaves: how many leaf columns the schema has.

    Raises:
        ValueError: the footer is no parquet footer, or its columns are encrypted.
    """
    try:
        fields, _ = struct(footer, 0, _FOOTER)
    except IndexError:
        raise ValueError("it ends too early") from None
    orders = _typed(fields, 7, list) if 7 in fields else []
    ordered = [isinstance(order, dict) and 1 in order for order in orders]
    ordered += [False] * (leaves - len(ordered))
    return [_row_group(group, ordered, leaves) for group in _typed(fields, 4, list)]


def _row_group(group: Any, ordered: list[bool], leaves: int) -> RowGroup:
    columns = _typed(group, 1, list)
    if len(columns) != leaves:
        raise ValueError(f"a row group has {len(columns)} columns, and the schema {leaves}")
    chunks = tuple(_chunk(column, ordered[leaf]) for leaf, column in enumerate(columns))
    return RowGroup(_typed(group, 3, int), chunks)


def _chunk(column: Any, ordered: bool) -> Chunk:
    if isinstance(column, dict) and 8 in column:
        raise ValueError("a column is encrypted")
    about = _typed(column, 3, dict)
    values, length, start = about.get(5), about.get(7), about.get(9)
    if not type(values) is type(length) is type(start) is int:
        raise ValueError("a column does not say how much it holds, and where")
    if isinstance(dictionary := about.get(11), int) and 0 < dictionary < start:
        start = dictionary
    nulls, bounds = None, None
    if isinstance(statistics := about.get(12), dict):
        if 3 in statistics:
            nulls = _typed(statistics, 3, int)
        if isinstance(kind := about.get(1), int) and kind in _WIDTHS:
            bounds = _bounds(statistics, _WIDTHS[kind], ordered)
    return Chunk(_typed(about, 3, bytes), values, start, length, nulls, bounds)


def _bounds(statistics: dict[int, Any], width: int, ordered: bool) -> tuple[int, int] | None:
    """Fields 5 and 6 count where the file says how its columns are ordered, else the older 1 and 2,
    as the format has it."""
    most, least = (statistics.get(number) for number in ((5, 6) if ordered else (1, 2)))
    if not isinstance(most, bytes) or not isinstance(least, bytes):
        return None
    if len(most) != width or len(least) != width:
        return None
    return int.from_bytes(least, "little", signed=True), int.from_bytes(most, "little", signed=True)


def _typed(fields: Any, number: int, kind: type) -> Any:
    """A field that must be there and of this type."""
    value = fields.get(number) if isinstance(fields, dict) else None
    if type(value) is not kind:
        raise ValueError(f"field {number} is {type(value).__name__}, not {kind.__name__}")
    return value
