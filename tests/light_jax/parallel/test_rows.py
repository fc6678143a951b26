"""Each process reads the row groups that hold its rows, and the processes together read all."""

from __future__ import annotations

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from several import several
from tiny_runs import IMPORTS, ROOT

SEQ_LEN, BATCH, STEPS, GROUP = 16, 8, 4, 2  # a row group holds as many windows

READER = f"""
import json, sys
from light_jax.sections import MeshConfig
from light_jax.data import BatchLoader, TokenStream, stream
from light_jax.parallel.hosts import initialize
from light_jax.parallel.sharding import local_rows, make_mesh

decode, groups = stream.decode, []

def counted(footer, number, vocab_size):
    groups.append(number)
    return decode(footer, number, vocab_size)

stream.decode = counted
initialize(60)
rows = local_rows({BATCH}, make_mesh(MeshConfig(data=-1)))
data = TokenStream(sys.argv[1], seq_len={SEQ_LEN}, seed=1, vocab_size=131)
groups.clear()
loader = BatchLoader(data, batch_size={BATCH}, last_step={STEPS}, num_workers=0, rows=rows)
print(json.dumps([rows, [batch.shape for batch in loader], groups]), flush=True)
"""


@pytest.mark.parametrize("count", [2, 4])
def test_each_process_decodes_the_row_groups_of_its_own_rows(tmp_path, count):
    windows = BATCH * STEPS
    tokens = [[(7 * n + k) % 131 for k in range(GROUP * SEQ_LEN)] for n in range(windows // GROUP)]
    tokens.append([1])  # the target of the last position
    table = pa.table({"tokens": pa.array(tokens, pa.list_(pa.int32()))})
    pq.write_table(table, tmp_path / "shard.parquet", row_group_size=1)
    command = [sys.executable, "-c", READER, tmp_path / "shard.parquet"]
    with several([command] * count, ROOT, devices=2, env=lambda number: IMPORTS) as runs:
        said = [run.communicate(timeout=200) for run in runs]
    found = [json.loads(out.splitlines()[-1]) for out, _ in said]
    share = BATCH // count
    for number, (rows, shapes, groups) in enumerate(found):
        assert rows == list(range(number * share, (number + 1) * share))
        assert shapes == [[1, share, SEQ_LEN + 1]] * STEPS
        assert len(groups) == len(set(groups))  # each once
        first = [step * BATCH + row for step in range(STEPS) for row in rows]
        # of a window, and of the token after it, which is the last target
        needed = {window // GROUP for window in first} | {(window + 1) // GROUP for window in first}
        assert set(groups) <= needed
        assert {window // GROUP for window in first} <= set(groups)
    assert {group for _, _, groups in found for group in groups} >= set(range(windows // GROUP))
