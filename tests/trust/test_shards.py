"""A shard from a stranger: nothing that it claims is believed before it is compared."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_runs import BIN

from light_jax.data.footer import read_footer
from light_jax.data.index import index_shards
from light_jax.data.rowgroup import decode
from light_llm.errors import UserError
from light_llm.files import parquet
from light_llm.preprocess import unigram_entropy
from light_llm.preprocess.listing import check_vocabulary
from light_llm.preprocess.manifest import read_manifest


def constant(path: Path, tokens: int, rows: int = 1) -> Path:
    """A shard with one token many times, which takes a few hundred bytes."""
    offsets = pa.array(np.linspace(0, tokens, rows + 1).astype(np.int32))
    lists = pa.ListArray.from_arrays(offsets, pa.array(np.zeros(tokens, np.int32)))
    pq.write_table(
        pa.table({"tokens": lists}),
        path,
        row_group_size=rows,
        compression="zstd",
        data_page_size=2**30,
        write_statistics=False,
    )
    return path


def lie(path: Path, number: int, instead: int) -> None:
    """Replace a number in the footer by one with as many bytes."""
    data = path.read_bytes()
    length = int.from_bytes(data[-8:-4], "little")
    body, footer = data[: -8 - length], data[-8 - length : -8]
    old, new = varint(number), varint(instead, len(varint(number)))
    assert old in footer
    path.write_bytes(body + footer.replace(old, new) + data[-8:])


def varint(number: int, length: int = 1) -> bytes:
    """A number in Thrift's encoding, with at least this many bytes."""
    number = 2 * number if number >= 0 else -2 * number - 1  # zigzag
    out = []
    while number or len(out) < length:
        out.append(number & 127 | 128)
        number >>= 7
    out[-1] &= 127
    return bytes(out)


def test_few_bytes_do_not_claim_many_tokens(tmp_path: Path):
    path = constant(tmp_path / "a.parquet", 2**26 + 1)
    assert path.stat().st_size < 5_000
    for read in (index_shards, unigram_entropy):
        with pytest.raises(UserError, match=r"a\.parquet: row group 0 claims 67,108,865 values of"):
            read(str(path))


def test_few_bytes_may_claim_what_memory_holds(tmp_path: Path):
    (shard,) = index_shards(str(constant(tmp_path / "a.parquet", 10**6, rows=1000)))
    assert shard.tokens.sum() == 10**6


def test_a_footer_that_claims_less_than_the_pages_hold_is_refused(tmp_path: Path):
    path = constant(tmp_path / "a.parquet", 10**6)
    lie(path, 10**6, 3)
    for read in (index_shards, unigram_entropy):
        with pytest.raises(UserError, match=r"row group 0 is corrupt .*more than the 3 values of"):
            read(str(path))


@pytest.mark.parametrize(
    "number, instead, message",
    [
        (500, 8000, r"claims 8,000 rows and 1,000 values"),
        (500, -1, r"claims|corrupt"),
        (1000, -1, r"its footer claims|corrupt"),
    ],
)
def test_a_footer_with_impossible_numbers_is_refused(
    tmp_path: Path, number: int, instead: int, message: str
):
    path = constant(tmp_path / "a.parquet", 1000, rows=500)
    lie(path, number, instead)
    with pytest.raises(UserError, match=rf"a\.parquet: .*({message})"):
        index_shards(str(path))


def test_no_page_is_believed_beyond_its_bytes(tmp_path: Path):
    """The header of the first page claims 2 GB; the footer stays as it is."""
    path = constant(tmp_path / "a.parquet", 1000)
    data = bytearray(path.read_bytes())
    assert data[4:6] == b"\x15\x04"  # field 1: a dictionary page; field 2: its bytes
    forged = bytes(data[:6]) + b"\x15" + varint(2**31 - 1)
    path.write_bytes(forged + bytes(data[len(forged) :]))
    with pytest.raises(UserError, match="row group 0 is corrupt"):
        decode(read_footer(str(path)), 0, None)


def test_a_footer_is_a_small_part_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert not parquet.footer_fits(100, 111)
    assert parquet.footer_fits(100, 112)
    assert not parquet.footer_fits(2**25, 2**26)
    assert parquet.footer_fits(2**25, 2**28)
    path = constant(tmp_path / "a.parquet", 10)
    monkeypatch.setattr(parquet.given, "SMALL", 10)
    for read in (index_shards, unigram_entropy):
        with pytest.raises(UserError, match=r"footer .*of .* bytes in a file of"):
            read(str(path))


def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo.parquet")
    (tmp_path / "zero.parquet").symlink_to("/dev/zero")
    for name, kind in (("fifo", "a FIFO"), ("zero", "a device")):
        path = str(tmp_path / f"{name}.parquet")
        with pytest.raises(UserError, match=f"{name}.parquet: the shard is {kind}"):
            index_shards(path)
        with pytest.raises(UserError, match="there is no such shard"):
            unigram_entropy(path)
    with pytest.raises(UserError, match="is a"):
        index_shards(str(tmp_path))


def test_a_manifest_is_not_believed(tmp_path: Path):
    path = tmp_path / "manifest.json"
    good = {"format": 1, "tokenizer": {"vocab_size": 9}}
    good |= {"shards": [{"file": "train/shard_00000.parquet"}]}
    path.write_text(json.dumps(good))
    assert read_manifest(path) == good
    for bad in (
        {"shards": [{"file": "../train/shard_00000.parquet"}]},
        {"shards": [{"file": "../../x"}]},
        {"shards": [{"file": 3}]},
        {"shards": {"file": 1}},
        {"tokenizer": {"vocab_size": "9"}},
        {"tokenizer": {"vocab_size": True}},
        {"tokenizer": 9},
        {"format": []},
    ):
        path.write_text(json.dumps(good | bad))
        assert read_manifest(path) is None
    for text in ("[" * 100_000, "null", "[]", "1" * 5000, "\0"):
        path.write_text(text)
        assert read_manifest(path) is None
    path.unlink()
    os.mkfifo(path)
    check_vocabulary([tmp_path / "train/shard_00000.parquet"], 1, "train_data")


def test_what_a_shard_says_is_shown_and_never_obeyed(tmp_path: Path):
    folder = tmp_path / "a\x1b[31m$\\frac"  # and not a formula to matplotlib
    folder.mkdir()
    constant(folder / "s\x1b[2J.parquet", 100)
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "data-stats.png").symlink_to("notes")
    for sub in (["show", folder, "--seq-len", "8"], ["stats", folder]):
        done = subprocess.run(
            [BIN / "llm-data", *sub], capture_output=True, text=True, timeout=60, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout + done.stderr
    assert (tmp_path / "notes").read_text() == "mine"
    assert (tmp_path / "data-stats.png").read_bytes().startswith(b"\x89PNG")
