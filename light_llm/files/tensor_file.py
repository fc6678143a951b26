"""A safetensors file, written one tensor at a time. Its bytes are those that safetensors writes.

8 bytes    length of the header, little-endian
header     JSON: dtype, shape and place of each tensor; spaces at its end to a multiple of 8
data       the tensors without gaps, little-endian, rows first
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from light_llm.files import disk

WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of a number, by the names of the types in a header."""


class Spec(NamedTuple):
    dtype: str  # one of WIDTHS
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * WIDTHS[self.dtype]


def in_order(specs: Mapping[str, Spec]) -> list[str]:
    """The names as their data lie: the widest types first, so that each is at a multiple of its
    width, and then by name."""
    return sorted(specs, key=lambda name: (-WIDTHS[specs[name].dtype], name))


def write(
    path: Path,
    specs: Mapping[str, Spec],
    metadata: Mapping[str, str],
    data: Callable[[str], Iterable[Any]],
) -> None:
    """Write a new file. It is not flushed to the disk.

    Args:
        data: the bytes of a tensor in one or several buffers; asked for each name once, in the
            order of `in_order`.
    """
    names = in_order(specs)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        begin, end = end, end + specs[name].nbytes
        dtype, shape = specs[name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with disk.create(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            written = sum(file.write(buffer) for buffer in data(name))
            assert written == specs[name].nbytes, name
