"""A checksum of a file of JSON by its values, however they are written."""

from __future__ import annotations

import json
import zlib
from typing import Any


def of_json(value: Any) -> int:
    """CRC-32 of a JSON value. The order of keys does not count, nor whether 1 is written as 1.0, as
    other programs write what they have read.

    Raises:
        RecursionError: it nests too deep.
    """
    return zlib.crc32(json.dumps(_whole(value), sort_keys=True).encode("utf-8", "surrogatepass"))


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
