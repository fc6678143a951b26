"""Arrow's arrays and NumPy's, of one another, without a copy of numbers.

pyarrow's own ways (`array`, `to_numpy`, `scalar`) import pandas wherever that is installed, which
takes half a second at every start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def numbers(array: pa.Array) -> np.ndarray:
    """Integers without a null as NumPy sees them."""
    import numpy as np

    return np.from_dlpack(array)


def of_numbers(values: np.ndarray) -> pa.Array:
    """int32 or int64 [N] as Arrow sees them."""
    import numpy as np
    import pyarrow as pa

    values = np.ascontiguousarray(values)
    type = {"int32": pa.int32(), "int64": pa.int64()}[values.dtype.name]
    return pa.Array.from_buffers(type, len(values), [None, pa.py_buffer(values)])


def of_texts(texts: Sequence[bytes]) -> pa.StringArray:
    """
    Args:
        texts: UTF-8, fewer than 2^31 bytes together.

    Raises:
        OverflowError: there are more.
    """
    import numpy as np
    import pyarrow as pa

    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=offsets[1:])
    if offsets[-1] >= 2**31:
        raise OverflowError(f"{offsets[-1]:,} bytes of text in one array")
    ends, data = pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(b"".join(texts))
    return pa.StringArray.from_buffers(len(texts), ends, data)
