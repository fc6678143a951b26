"""One row group of a shard -> its tokens, each checked."""

from __future__ import annotations

import functools
import os

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from light_jax.data.footer import UNREADABLE, Footer
from light_llm.errors import UserError, one_line
from light_llm.files import given
from light_llm.files.arrow import numbers
from light_llm.files.pages import check_pages
from light_llm.files.parquet import leaves
from light_llm.preprocess.schema import TOKENS


def decode(footer: Footer, group: int, vocab_size: int | None) -> np.ndarray:
    """The tokens of a row group, its rows one after another: int32 [n], read-only.

    Raises:
        UserError: damaged pages; a null list, a null token, or an id outside 0..vocab_size-1
            (2^31-1 if that is None), with the shard and row that hold it.
    """
    return _tokens(footer, group, _lists(footer, group), vocab_size)


def row_lengths(footer: Footer, group: int) -> np.ndarray:
    """Tokens per row of a row group: int64 [rows].

    Raises:
        UserError: as `decode`.
    """
    return _row_lengths(_lists(footer, group))


def documents(footer: Footer, group: int) -> tuple[np.ndarray, np.ndarray]:
    """(`row_lengths`, `decode`) of a row group that is read only once.

    Raises:
        UserError: as `decode`.
    """
    lists = _lists(footer, group)
    return _row_lengths(lists), _tokens(footer, group, lists, None)


def first_row(footer: Footer, group: int) -> int:
    """The number of a row group's first row in its shard."""
    return sum(before.rows for before in footer.groups[:group])


def _lists(footer: Footer, group: int) -> list[tuple[int, pa.Array]]:
    """The chunks of a row group's lists, each with its first row in the group."""
    try:
        _check_pages(footer, group)
        table = footer.file().read_row_group(group, columns=[TOKENS], use_threads=False)
    except UNREADABLE as error:
        raise UserError(
            f"{footer.path}: row group {group} is corrupt or gone ({one_line(error)}); "
            "write the shard again"
        ) from None
    rows = footer.groups[group].rows
    if table.num_rows != rows:
        raise UserError(
            f"{footer.path}: row group {group} holds {table.num_rows} rows where the footer says "
            f"{rows}; write the shard again"
        )
    lists, row = [], 0
    for chunk in table.column(TOKENS).chunks:
        if chunk.null_count:
            place = _at(footer, group, row + _first_null(chunk))
            raise UserError(f"{place}: tokens is null; write an empty list")
        lists.append((row, chunk))
        row += len(chunk)
    return lists


def _check_pages(footer: Footer, group: int) -> None:
    """Check what the pages claim, since decoding allocates that much.

    Raises:
        ValueError: as `check_pages`.
    """
    with given.open_regular(footer.place(), "the shard") as file:
        read_at = functools.partial(os.pread, file.fileno())
        for leaf in leaves(footer.metadata, TOKENS):
            check_pages(read_at, footer.groups[group].chunks[leaf])


def _tokens(
    footer: Footer, group: int, lists: list[tuple[int, pa.Array]], vocab_size: int | None
) -> np.ndarray:
    pieces = [_check(footer, group, row, chunk, vocab_size) for row, chunk in lists]
    casted = [piece.astype(np.int32, copy=False) for piece in pieces]
    tokens = casted[0] if len(casted) == 1 else np.concatenate([np.empty(0, np.int32), *casted])
    tokens.flags.writeable = False
    return tokens


def _row_lengths(lists: list[tuple[int, pa.Array]]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *(_lengths(chunk) for _, chunk in lists)])


def _check(
    footer: Footer, group: int, row: int, lists: pa.Array, vocab_size: int | None
) -> np.ndarray:
    """The values of lists without nulls, of any integer type, after all checks."""
    values = (
        lists.flatten()
    )  # a view: it respects the slice, and copies nothing where no list is null
    if values.null_count:
        place = _at(footer, group, row + _row_of(lists, _first_null(values)))
        raise UserError(f"{place}: tokens holds a null; every token must be a number")
    ids = numbers(values)
    largest = int(np.iinfo(ids.dtype).max)
    limit = min(largest + 1, 2**31 if vocab_size is None else vocab_size)
    unsigned = ids.view(
        f"u{ids.itemsize}"
    )  # unsigned, negative ids are the largest: one pass checks both bounds
    if int(unsigned.max(initial=0)) >= limit:
        bad = int(np.argmax(unsigned >= limit))
        place = _at(footer, group, row + _row_of(lists, bad))
        if vocab_size is None:
            raise UserError(f"{place}: token id {ids[bad]} does not fit; ids lie in 0..{2**31 - 1}")
        raise UserError(
            f"{place}: token id {ids[bad]} is outside 0..{vocab_size - 1} "
            f"(model.vocab_size={vocab_size}); raise model.vocab_size to the tokenizer's, or make "
            "the shards again with the model's tokenizer"
        )
    return ids


def _lengths(lists: pa.Array) -> np.ndarray:
    return numbers(pc.list_value_length(lists)).astype(np.int64)


def _first_null(array: pa.Array) -> int:
    return int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))


def _row_of(lists: pa.Array, place: int) -> int:
    """The row that holds the value at `place`."""
    return int(np.searchsorted(np.cumsum(_lengths(lists)), place, side="right"))


def _at(footer: Footer, group: int, row: int) -> str:
    return f"{footer.path}: row {first_row(footer, group) + row} (the first is 0)"
