"""Thrift's compact protocol, in which parquet writes its footers and page headers.

Only what parquet uses of it: there are no maps and no sets. A footer can have a megabyte, and a run
reads thousands of them, so what is not wanted is passed over and nothing is made of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

DEEPEST = 12
"""Structs and lists inside each other; parquet's own go to 8."""
Wanted: TypeAlias = "Mapping[int, Wanted | None]"
"""The numbers of the fields to read. Those of structs, or of lists of structs, have a mapping of
their own; None stands for a field as it is."""
_BINARY, _LIST, _STRUCT = 8, 9, 12
_SIZES = {1: 1, 2: 1, 3: 1, 7: 8}  # bytes of a bool, a byte and a double in a list
_INTEGER = rb"[\x80-\xff]{0,9}+[\x00-\x7f]"


def _heads(*kinds: int) -> bytes:
    """A class of the first bytes of a field of these kinds, with its number in the same byte."""
    return (
        b"[" + re.escape(bytes(step << 4 | kind for step in range(1, 16) for kind in kinds)) + b"]"
    )


def _patterns() -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """A short list of integers, and a struct of integers, bools and such lists: most of what is
    passed over."""
    lists = [
        b"[" + re.escape(bytes(count << 4 | kind for kind in (4, 5, 6))) + b"]"
        rb"(?:%b){%d}" % (_INTEGER, count)
        for count in range(15)
    ]
    short = b"(?:" + b"|".join(lists) + b")"
    fields = _heads(4, 5, 6) + _INTEGER, _heads(1, 2), _heads(_LIST) + short
    return re.compile(short), re.compile(b"(?:" + b"|".join(fields) + rb")*+\x00")


_SHORT, _FLAT = _patterns()


def struct(
    data: bytes, at: int, wanted: Wanted, depth: int = DEEPEST
) -> tuple[dict[int, Any], int]:
    """The wanted fields of the struct at byte `at` by their numbers, and where it ends.

    A field is an int, a bool, bytes, a dict, or a list of dicts. Other lists, and structs that have
    no mapping of their own, are their bytes in the file. Of a number that is there twice the last
    holds, as in parquet's own reader.

    Raises:
        IndexError: the data end before the struct does.
        ValueError: what no struct of parquet has, or nesting beyond `depth`.
    """
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        kind = head & 15
        if head > 15:
            number += head >> 4
        else:
            number, at = _integer(data, at)
        if 3 < kind < 7:  # of 16, 32 and 64 bits: most fields are, and most of these have a byte
            value = data[at]
            if value < 128:
                at += 1
            else:
                value, at = _varint(data, at)
            if number in wanted:
                fields[number] = (value >> 1) ^ -(value & 1)
        elif kind == _BINARY:
            length, start = _varint(data, at)
            at = start + length
            if number in wanted:
                fields[number] = data[start:at]
        elif kind < 3:  # a bool is its kind
            if number in wanted:
                fields[number] = kind == 1
        elif number in wanted:
            fields[number], at = _value(data, at, kind, wanted[number], depth - 1)
        else:
            at = _skip(data, at, kind, depth - 1)
    return fields, at + 1


def strings(data: bytes) -> list[bytes]:
    """The elements of a list of strings, from its bytes.

    Raises:
        IndexError, ValueError: it is something else.
    """
    count, kind, at = _list(data, 0)
    if kind != _BINARY:
        raise ValueError("not a list of strings")
    found = []
    for _ in range(count):
        value, at = _binary(data, at)
        found.append(value)
    return found


def _value(data: bytes, at: int, kind: int, wanted: Wanted | None, depth: int) -> tuple[Any, int]:
    if wanted is not None and depth > 0:
        if kind == _STRUCT:
            return struct(data, at, wanted, depth)
        if kind == _LIST:
            count, inner, start = _list(data, at)
            if inner == _STRUCT or not count:  # of an empty list the kind says nothing
                return _structs(data, start, count, wanted, depth - 1)
    end = _skip(data, at, kind, depth)
    return data[at:end], end


def _structs(
    data: bytes, at: int, count: int, wanted: Wanted, depth: int
) -> tuple[list[dict[int, Any]], int]:
    found = []
    for _ in range(count):
        fields, at = struct(data, at, wanted, depth)
        found.append(fields)
    return found, at


def _skip(data: bytes, at: int, kind: int, depth: int) -> int:
    """Where a value ends."""
    if 3 < kind < 7:
        while data[at] > 127:
            at += 1
        return at + 1
    if kind == _BINARY:
        length, at = _varint(data, at)
        return at + length
    if kind in _SIZES:
        return at + _SIZES[kind]
    if depth < 0:
        raise ValueError(f"more than {DEEPEST} structs and lists inside each other")
    if kind == _STRUCT:
        flat = _FLAT.match(data, at)
        return flat.end() if flat else struct(data, at, {}, depth)[1]
    if kind != _LIST:
        raise ValueError(f"parquet has no field of kind {kind}")
    if short := _SHORT.match(data, at):
        return short.end()
    count, inner, at = _list(data, at)
    if inner in _SIZES:
        return at + count * _SIZES[inner]
    for _ in range(count):
        at = _skip(data, at, inner, depth - 1)
    return at


def _list(data: bytes, at: int) -> tuple[int, int, int]:
    """(how many elements, their kind, where they begin)."""
    head = data[at]
    at += 1
    count = head >> 4
    if count == 15:
        count, at = _varint(data, at)
    if count > len(data) - at:  # an element takes a byte at least
        raise IndexError
    return count, head & 15, at


def _binary(data: bytes, at: int) -> tuple[bytes, int]:
    length, at = _varint(data, at)
    if length > len(data) - at:
        raise IndexError
    return data[at : at + length], at + length


def _integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = data[at]
    if value < 128:
        return value, at + 1
    value &= 127
    shift = 7
    while (byte := data[at := at + 1]) > 127:
        value |= (byte & 127) << shift
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
    return value | byte << shift, at + 1
