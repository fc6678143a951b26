"""How fast batches come, against a bare parquet read of the same shards. Usage:

python benchmarks/data.py [--shards 8] [--runs 5] [--type int32]
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from light_jax.data import BatchLoader, TokenStream

BATCH, SEQ_LEN, VOCAB = 32, 1024, 32000


def write_shards(folder: Path, count: int, kind: str) -> int:
    """Shards of 4 row groups of 1000 documents of about 500 tokens; returns their tokens."""
    rng, total = np.random.default_rng(0), 0
    for number in range(count):
        lengths = rng.integers(250, 751, size=4000)
        ids = np.minimum(rng.zipf(1.2, size=lengths.sum()) - 1, VOCAB - 1)
        lists = pa.ListArray.from_arrays(
            pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()),
            pa.array(ids).cast(kind),
        )
        table = pa.table({"length": lengths, "tokens": lists})
        path = folder / f"{number:05d}.parquet"
        pq.write_table(table, path, row_group_size=1000, compression="zstd")
        total += int(lengths.sum())
    return total


def bare(folder: Path) -> int:
    """Decode the column, one thread, a row group at a time, and do nothing with it."""
    tokens = 0
    for path in sorted(folder.iterdir()):
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                lists = file.read_row_group(group, columns=["tokens"], use_threads=False)
                tokens += sum(len(chunk.values) for chunk in lists.column(0).chunks)
    return tokens


def loader(stream: TokenStream, num_workers: int) -> int:
    """One epoch of batches."""
    steps = len(stream) // BATCH
    with BatchLoader(stream, batch_size=BATCH, last_step=steps, num_workers=num_workers) as batches:
        return sum(batch[..., 1:].size for batch in batches)


def naive(folder: Path) -> int:
    """Rows as Python lists, appended to a buffer from which batches are cut."""
    tokens, buffer = 0, []
    for path in sorted(folder.iterdir()):
        for group in range(pq.read_metadata(path).num_row_groups):
            rows = pq.ParquetFile(path).read_row_group(group, columns=["tokens"])
            for row in rows.column("tokens").to_pylist():
                buffer.extend(row)
                while len(buffer) > BATCH * SEQ_LEN:
                    windows = [buffer[i * SEQ_LEN :][: SEQ_LEN + 1] for i in range(BATCH)]
                    tokens += np.array(windows, np.int32)[:, 1:].size
                    del buffer[: BATCH * SEQ_LEN]
    return tokens


def rates(run: Callable[[], int]) -> tuple[float, float]:
    """Tokens a second by the clock, and by the processor time of all threads."""
    clock, cpu = time.perf_counter(), time.process_time()
    tokens = run()
    return tokens / (time.perf_counter() - clock), tokens / (time.process_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--type", default="int32")
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python", end=" ")
    print(f"{platform.python_version()}, pyarrow {pa.__version__}, numpy {np.__version__}")
    print(f"commit {commit.strip()}: python {' '.join(sys.argv)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = write_shards(folder, args.shards, args.type)
        print(f"{args.shards} shards, {tokens / 1e6:.1f}M tokens {args.type}, zstd, ", end="")
        print(f"batch {BATCH}, seq_len {SEQ_LEN}; medians of {args.runs} alternating runs")
        began = time.perf_counter()
        stream = TokenStream(folder, seq_len=SEQ_LEN, seed=0, vocab_size=VOCAB)
        print(f"index: {1e3 * (time.perf_counter() - began):.1f} ms, once")
        runs: dict[str, Callable[[], int]] = {"bare read": lambda: bare(folder)}
        for count in (0, 1, 2):
            runs[f"{count} workers"] = functools.partial(loader, stream, count)
        runs["row loop"] = lambda: naive(folder)
        taken: dict[str, list[tuple[float, float]]] = {label: [] for label in runs}
        for _ in range(args.runs):
            for label, run in runs.items():
                taken[label].append(rates(run))
    middle = {label: np.median(taken[label], axis=0) / 1e6 for label in runs}
    print(f"{'':12}{'Mtokens/s':>12}{'of bare':>9}{'Mtokens/cpu s':>15}{'of bare':>9}")
    bare_clock, bare_cpu = middle["bare read"]
    for label, (clock, cpu) in middle.items():
        print(f"{label:12}{clock:12.1f}{clock / bare_clock:9.2f}{cpu:15.1f}{cpu / bare_cpu:9.2f}")


if __name__ == "__main__":
    main()
