"""Damaged bytes in what is read are a message, or change nothing: some flips of flips.py."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_runs import ROOT

EVERY_BIT = """
import sys, warnings
from pathlib import Path
from light_jax.data.index import index_shards
from light_jax.data.rowgroup import decode
from light_jax.data.footer import read_footer
from light_llm.errors import UserError
from light_llm.files.parquet import opened

path = Path(sys.argv[1])
data = path.read_bytes()
start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")

def by_training():
    rows = index_shards(str(path), 9)[0].rows.tolist()
    return rows, decode(read_footer(str(path)), 0, 9).tolist()

def by_preprocess():
    with opened(path) as shard:
        return shard.file.read().to_pylist()

for read in (by_training, by_preprocess):
    whole, refused = read(), 0
    for at in range(start, len(data)):
        for bit in range(at % 4, 8, 4):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1:])
            try:
                found = read()
            except UserError:
                refused += 1
            else:  # a corpus has no such rules as a shard, and other text is text too
                assert found == whole or read is by_preprocess, (at, bit)
    path.write_bytes(data)
    assert refused > 100
"""


def run_flips(*args: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "tests/trust/flips.py"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, script, *args], capture_output=True, text=True, env=env, timeout=900
    )


def test_flipped_bits_are_a_message_or_nothing():
    done = run_flips("--flips", "150", "--seed", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "150 flips" in done.stdout


@pytest.mark.slow
def test_two_thousand_flipped_bits_are_a_message_or_nothing():
    done = run_flips("--flips", "2000", "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_bit_of_a_footer_ends_the_process_or_changes_a_token(tmp_path: Path):
    """A quarter of them. One in fifty did: pyarrow's accessors of columns abort where a footer
    contradicts itself."""
    table = pa.table(
        {"length": [3, 2], "tokens": pa.array([[1, 2, 3], [4, 5]], pa.list_(pa.int32()))}
    )
    held = io.BytesIO()
    pq.write_table(table, held, write_page_checksum=True, store_schema=False)
    path = tmp_path / "a.parquet"
    path.write_bytes(held.getvalue())
    done = subprocess.run(
        [sys.executable, "-c", EVERY_BIT, path],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
