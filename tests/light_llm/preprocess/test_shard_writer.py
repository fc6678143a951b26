"""Shards of documents that are given by hand: bytes, size, row groups, entropy."""

from __future__ import annotations

import gc
import hashlib
import math
import resource
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from light_llm.errors import UserError
from light_llm.preprocess import unigram_entropy
from light_llm.preprocess.ids import Ids, of_rows
from light_llm.preprocess.rowbatch import row_batch
from light_llm.preprocess.shards import Shard, ShardWriter
from light_llm.preprocess.sides import Sides


def write(folder: Path, documents: list[list[int]], shard_size: int = 10**9) -> list[Shard]:
    rows = row_batch([""] * len(documents), [""] * len(documents), of_rows(documents))
    writer, empty = ShardWriter(folder, "train"), ShardWriter(folder, "val")
    closed, done, held = [], 0, np.zeros(len(documents), bool)
    with Sides(writer, empty, shard_size) as sides:
        while done < len(rows):
            done += sides.add(rows.slice(done, len(rows)), held[done:])
            closed.append(sides.close())
        assert sides.close().result() == []
    return [shard for future in closed for shard in future.result()]


def error_of_writing(folder: Path) -> str | None:
    values = np.random.default_rng(0).integers(50_000, size=1024 * 1500, dtype=np.int32)
    rows = row_batch([""] * 1024, [""] * 1024, Ids(values, np.full(1024, 1500)))
    try:
        with Sides(ShardWriter(folder, "train"), ShardWriter(folder, "val"), 10**9) as sides:
            for _ in range(3):
                sides.add(rows, np.zeros(len(rows), bool))
            sides.close().result()
    except OSError as error:
        return error.strerror
    return None


def test_a_full_disk_is_one_error_and_libraries_add_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture
):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        error = error_of_writing(tmp_path)
        gc.collect()  # Arrow writes what is left of a shard when nobody has it any more
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error == "File too large"
    assert [path.name for path in (tmp_path / "train").iterdir()] == ["shard_00000.parquet.writing"]
    assert capfd.readouterr().err == ""


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=40), st.data())
def test_shards_do_not_depend_on_how_the_documents_came(
    documents: list[tuple[int, bool]], data: st.DataObject
):
    """Each shard, of either side, ends before the document that does not fit."""
    lengths = [length for length, _ in documents]
    rows = row_batch(
        [str(n) for n in range(len(lengths))],
        [f"text {n}" for n in range(len(lengths))],
        of_rows([[n] * length for n, length in enumerate(lengths)]),
    )
    held = np.array([val for _, val in documents], bool)
    expected: list[list[int]] = [[]]
    for number, (length, val) in enumerate(documents):
        ours = [n for n in expected[-1] if documents[n][1] == val]
        if ours and sum(lengths[n] for n in ours) + length > 10:
            expected.append([])
        expected[-1].append(number)
    with tempfile.TemporaryDirectory() as folder:
        writers = [ShardWriter(Path(folder), side) for side in ("train", "val")]
        cuts = []
        with Sides(*writers, 10) as sides:
            done, end = 0, 0
            while done < len(rows):
                if done == end:
                    end = data.draw(st.integers(end + 1, len(rows)))
                done += sides.add(rows.slice(done, end), held[done:end])
                if done < end:
                    cuts.append(done)
                    sides.close().result()
            sides.close().result()
        assert cuts == [part[0] for part in expected[1:]]
        for side in ("train", "val"):
            files = sorted(Path(folder).glob(f"{side}/*.parquet"))
            got = [pq.read_table(file)["source"].to_pylist() for file in files]
            ours = [
                [str(n) for n in part if documents[n][1] == (side == "val")] for part in expected
            ]
            assert got == [part for part in ours if part]


def test_shards_keep_to_their_size(tmp_path: Path):
    lengths = [4, 5, 1, 30, 10, 1, 9, 9]
    shards = write(tmp_path, [list(range(length)) for length in lengths], shard_size=10)
    files = [tmp_path / shard.file for shard in shards]
    sizes = [pq.read_table(file)["length"].to_pylist() for file in files]
    assert sizes == [[4, 5, 1], [30], [10], [1, 9], [9]]
    assert [file.name for file in files] == [f"shard_{i:05d}.parquet" for i in range(5)]
    assert sorted((tmp_path / "train").iterdir()) == files
    for shard, file in zip(shards, files, strict=True):
        assert shard.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert (shard.bytes, shard.characters) == (file.stat().st_size, 0)
        assert shard.tokens == sum(pq.read_table(file)["length"].to_pylist())


def test_row_groups_are_bounded_in_documents_and_tokens(tmp_path: Path):
    (shard,) = write(tmp_path, [[1]] * 1500 + [[1] * 1_500_000] * 3)
    metadata = pq.read_metadata(tmp_path / shard.file)
    groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    assert groups == [1024, 478, 1]


def test_unigram_entropy_by_hand(tmp_path: Path):
    shards = write(tmp_path, [[0, 0], [7, 7], [9, 0], [0, 9]], 4)  # 0: 4/8, 7: 2/8, 9: 2/8
    files = [tmp_path / shard.file for shard in shards]
    assert len(files) == 2
    for paths in (tmp_path / "train", files, [tmp_path / "train"]):
        assert unigram_entropy(paths) == pytest.approx(1.5 * math.log(2))
    with pytest.raises(UserError, match="there is no such shard"):
        unigram_entropy(tmp_path / "none.parquet")
    with pytest.raises(UserError, match="there is no token"):
        unigram_entropy([])
