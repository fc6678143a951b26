"""What a parquet footer says is read as pyarrow reads it, without pyarrow's accessors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from light_llm.files.chunks import row_groups
from light_llm.files.thrift import struct


def table(rows: int, kind: pa.DataType) -> pa.Table:
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 120, n).tolist() for n in rng.integers(0, 9, rows)]
    texts = [None if row % 7 == 3 else f"text {row}" for row in range(rows)]
    nested = [{"a": row, "b": [float(row)]} for row in range(rows)]
    columns = {"text": pa.array(texts), "tokens": pa.array(lists, pa.list_(kind)), "more": nested}
    return pa.table(columns)


def footer_of(path: Path) -> bytes:
    data = path.read_bytes()
    return data[-8 - int.from_bytes(data[-8:-4], "little") : -8]


@pytest.mark.parametrize("kind", [pa.int32(), pa.int64(), pa.uint8(), pa.int16(), pa.uint32()])
@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zstd"},
        {"use_dictionary": False, "compression": "none", "version": "1.0"},
        {"data_page_version": "2.0", "write_page_index": True, "data_page_size": 100},
        {"write_statistics": False},
        {"use_dictionary": ["tokens.list.element"], "write_statistics": ["tokens.list.element"]},
    ],
)
def test_a_footer_says_what_pyarrow_reads_in_it(tmp_path: Path, kind: pa.DataType, options: dict):
    path = tmp_path / "a.parquet"
    pq.write_table(table(500, kind), path, row_group_size=64, **options)
    metadata = pq.read_metadata(path)
    groups = row_groups(footer_of(path), metadata.num_columns)
    assert len(groups) == metadata.num_row_groups
    for number, group in enumerate(groups):
        theirs = metadata.row_group(number)
        assert group.rows == theirs.num_rows
        for leaf, chunk in enumerate(group.chunks):
            column = theirs.column(leaf)
            assert chunk.path == column.path_in_schema
            assert chunk.num_values == column.num_values
            assert chunk.length == column.total_compressed_size
            assert chunk.start == (column.dictionary_page_offset or column.data_page_offset)
            stats = column.statistics
            assert chunk.null_count == (None if stats is None else stats.null_count)
            of_integers = stats is not None and column.physical_type in ("INT32", "INT64")
            bounds = (stats.min, stats.max) if of_integers and stats.has_min_max else None
            assert chunk.bounds == bounds


def test_a_file_without_rows_has_no_values(tmp_path: Path):
    path = tmp_path / "a.parquet"
    pq.write_table(table(9, pa.int32()).slice(0, 0), path)
    (group,) = row_groups(footer_of(path), 4)
    assert (group.rows, {chunk.num_values for chunk in group.chunks}) == (0, {0})
    pq.ParquetWriter(path, pa.schema([("tokens", pa.int32())])).close()
    assert row_groups(footer_of(path), 1) == []


def test_an_empty_list_of_row_groups_may_have_any_kind(tmp_path: Path):
    """fastparquet writes no kind there."""
    pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("tokens", pa.int32())])).close()
    footer = footer_of(tmp_path / "a.parquet")
    rows, none, any_kind = b"\x16\x00", b"\x19\x0c", b"\x19\x00"
    assert footer.count(rows + none) == 1
    assert row_groups(footer.replace(rows + none, rows + any_kind), 1) == []


def test_bounds_need_no_order_of_columns_where_the_older_fields_have_them(tmp_path: Path):
    """Field 7 of a footer says how its columns are ordered; without it fields 1 and 2 hold."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"tokens": pa.array([5, 9], pa.int32())}), path)
    footer = footer_of(path)
    orders = b"\x19\x1c\x1c\x00\x00"  # a list of one struct, which holds an empty struct as field 1
    assert footer.endswith(orders + b"\x00")
    older = footer.removesuffix(orders + b"\x00") + b"\x00"
    assert row_groups(older, 1)[0].chunks[0].bounds == (5, 9)


def deep(levels: int) -> bytes:
    return b"\x1c" * levels + b"\x00" * (levels + 1)


@pytest.mark.parametrize(
    "footer, message",
    [
        (b"", "ends too early"),
        (b"\x15", "ends too early"),
        (b"\x15\x02\x00", "field 4 is NoneType"),
        (b"\x1b\x00\x00", "no field of kind 11"),
        (b"\x19\x1b\x00", "no field of kind 11"),
        (b"\x16" + b"\xff" * 99 + b"\x00\x00", "more than 64 bits"),
        (b"\x18\xff\xff\xff\xff\x0fabc\x00", "ends too early"),
        (b"\x19\xfc\xff\xff\xff\xff\x7f\x00\x00", "ends too early"),
        (b"\x19\xf7\xff\xff\xff\xff\x7f\x00\x00", "ends too early"),
        (deep(20), "inside each other"),
        (b"\x49\x15\x02\x00", "field 4 is bytes, not list"),
        (b"\x49\x1c\x19\x0c\x26\x02\x00\x00", "has 0 columns, and the schema 1"),
        (b"\x49\x1c\x19\x1c\x00\x26\x02\x00\x00", "field 3 is NoneType"),
        (b"\x49\x1c\x19\x1c\x8c\x00\x00\x26\x02\x00\x00", "encrypted"),
    ],
)
def test_what_is_no_footer_is_refused(footer: bytes, message: str):
    with pytest.raises(ValueError, match=message):
        row_groups(footer, 1)


def test_a_number_of_64_bits_is_read():
    for number in (0, 1, -1, 127, 2**31, 2**63 - 1, -(2**63)):
        zigzag, out = (number << 1) ^ (number >> 63), b"\x16"
        while zigzag > 127:
            out += bytes([zigzag & 127 | 128])
            zigzag >>= 7
        assert struct(out + bytes([zigzag, 0]), 0, {1: None}) == ({1: number}, len(out) + 2)
