"""How fast batches come, against other ways to read the same shards. Usage:

python benchmarks/data.py [--runs 5] [--seconds 60]

Needs pandas; measures grain too where it is installed.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from light_jax.config import load_config
from light_jax.data import BatchLoader, TokenStream

SMALL = load_config(Path(__file__).parents[1] / "configs/small.yaml")
BATCH, SEQ_LEN, VOCAB = SMALL.batch_size, SMALL.seq_len, SMALL.model.vocab_size
WORKERS = SMALL.num_workers
H100_TOKENS_PER_SECOND = 1.5e6  # more than one trains small.yaml at


def write_shards(folder: Path, count: int, groups: int, length: int) -> int:
    """Shards as llm-preprocess writes them: row groups of 1000 documents of about `length` tokens.

    Ids are distributed as words are. Returns how many tokens there are.
    """
    folder.mkdir()
    rng, total = np.random.default_rng(0), 0
    for number in range(count):
        lengths = rng.integers(length // 2, length * 3 // 2 + 1, size=1000 * groups)
        ids = np.minimum(rng.zipf(1.2, size=lengths.sum()) - 1, VOCAB - 1).astype(np.int32)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        lists = pa.ListArray.from_arrays(offsets, pa.array(ids))
        pq.write_table(
            pa.table({"length": lengths, "tokens": lists}),
            folder / f"{number:05d}.parquet",
            row_group_size=1000,
            compression="zstd",
            write_page_checksum=True,
        )
        total += int(lengths.sum())
    return total


def bare_groups(folder: Path) -> int:
    """Decode the column a row group at a time, in this thread, and do nothing with it."""
    tokens = 0
    for path in sorted(folder.iterdir()):
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                lists = file.read_row_group(group, columns=["tokens"], use_threads=False)
                tokens += sum(len(chunk.values) for chunk in lists.column(0).chunks)
    return tokens


def bare_files(folder: Path) -> int:
    """Decode the column a file at a time."""
    tokens = 0
    for path in sorted(folder.iterdir()):
        lists = pq.ParquetFile(path).read(columns=["tokens"])
        tokens += sum(len(chunk.values) for chunk in lists.column(0).chunks)
    return tokens


def loader(stream: TokenStream, num_workers: int) -> int:
    """An epoch of batches as the trainer takes them."""
    steps = len(stream) // BATCH
    with BatchLoader(stream, batch_size=BATCH, last_step=steps, num_workers=num_workers) as batches:
        return sum(batch[..., 1:].size for batch in batches)


def with_grain(stream: TokenStream, num_threads: int, by_batch: bool) -> int:
    """The same epoch by grain: an element is a batch, or a window, of which grain makes batches."""
    import grain

    class Source:
        def __len__(self) -> int:
            return len(stream) // BATCH * (1 if by_batch else BATCH)

        def __getitem__(self, i: int) -> np.ndarray:
            return stream.windows(np.arange(i * BATCH, (i + 1) * BATCH)) if by_batch else stream[i]

    data = grain.MapDataset.source(Source())
    data = data if by_batch else data.batch(BATCH)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=4 * num_threads)
    return sum(batch[..., 1:].size for batch in data.to_iter_dataset(options))


def row_loop(folder: Path, rows: Callable[[pd.DataFrame], Iterator[np.ndarray]]) -> int:
    """Rows of a data frame, appended to a list from which windows are cut."""
    tokens, buffer, windows = 0, [], []
    for path in sorted(folder.iterdir()):
        for row in rows(pd.read_parquet(path, columns=["tokens"])):
            buffer.extend(row.tolist())
            while len(buffer) > SEQ_LEN:
                windows.append(buffer[: SEQ_LEN + 1])
                buffer = buffer[SEQ_LEN:]
                if len(windows) == BATCH:
                    tokens += np.array(windows, np.int32)[:, 1:].size
                    windows = []
    return tokens


def iterrows(frame: pd.DataFrame) -> Iterator[np.ndarray]:
    return (row["tokens"] for _, row in frame.iterrows())


def compare(runs: dict[str, Callable[[], int]], against: list[str], repeats: int) -> None:
    """Alternate the runs and print medians: tokens by the clock and by processor time, and the
    median over the rounds of the ratio, by processor time, to each of `against`."""
    taken: dict[str, list[tuple[float, float]]] = {label: [] for label in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for label, run in runs.items():
            clock, cpu = time.perf_counter(), time.process_time()
            tokens = run()
            clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
            taken[label].append((tokens / clock / 1e6, tokens / cpu / 1e6))
    heads = "".join(f"{'of ' + name:>25}" for name in against)
    print(f"{'':26}{'Mtokens/s':>10}{'Mtokens/core s':>16}{heads}")
    for label in runs:
        clock, cpu = np.median(taken[label], axis=0)
        ratios = [np.median(np.divide(taken[label], taken[name])[:, 1]) for name in against]
        print(f"{label:26}{clock:10.1f}{cpu:16.1f}{''.join(f'{ratio:25.2f}' for ratio in ratios)}")


def against_a_bare_read(folder: Path, repeats: int) -> None:
    tokens = write_shards(folder, 16, 8, 500)
    print(f"\n{tokens / 1e6:.1f}M tokens in documents of about 500: an epoch of batches", end="")
    print(f" of {BATCH} × {SEQ_LEN}")
    stream = TokenStream(folder, seq_len=SEQ_LEN, seed=0, vocab_size=VOCAB)
    runs = {
        "bare read, row groups": lambda: bare_groups(folder),
        "bare read, files": lambda: bare_files(folder),
    }
    for count in (0, 1, 2, WORKERS):
        runs[f"loader, {count} threads"] = functools.partial(loader, stream, count)
    if importlib.util.find_spec("grain"):
        print(f"grain {importlib.metadata.version('grain')}")
        for by_batch, kind in ((True, "batches"), (False, "windows")):
            runs[f"grain {kind}, 2 threads"] = functools.partial(with_grain, stream, 2, by_batch)
    else:
        print("grain is not installed: not measured")
    compare(runs, ["bare read, row groups", "bare read, files"], repeats)


def against_a_row_loop(folder: Path, repeats: int) -> None:
    tokens = write_shards(folder, 8, 20, 100)
    print(f"\n{tokens / 1e6:.1f}M tokens in documents of about 100")
    stream = TokenStream(folder, seq_len=SEQ_LEN, seed=0, vocab_size=VOCAB)
    runs = {
        "pandas, iterrows": lambda: row_loop(folder, iterrows),
        "pandas, one column": lambda: row_loop(folder, lambda frame: iter(frame["tokens"])),
        "bare read, row groups": lambda: bare_groups(folder),
        "loader, 0 threads": lambda: loader(stream, 0),
        f"loader, {WORKERS} threads": lambda: loader(stream, WORKERS),
    }
    compare(runs, ["pandas, iterrows", "pandas, one column"], repeats)


def start_and_seek(folder: Path, repeats: int) -> None:
    tokens = write_shards(folder, 1000, 4, 25)
    print(f"\n1000 shards, 4000 row groups, {tokens / 1e6:.0f}M tokens: medians of {repeats}")
    index, seek, batch = [], [], []
    for _ in range(repeats):
        times = [time.perf_counter()]
        stream = TokenStream(folder, seq_len=SEQ_LEN, seed=0, vocab_size=VOCAB)
        times.append(time.perf_counter())
        stream[10**9]
        times.append(time.perf_counter())
        first = 10**9 // BATCH + 1
        with BatchLoader(
            stream,
            batch_size=BATCH,
            first_step=first,
            last_step=2 * first,
            num_workers=WORKERS,
        ) as loader:
            next(loader)
            times.append(time.perf_counter())
        for name, took in zip((index, seek, batch), np.diff(times), strict=True):
            name.append(1e3 * took)
    print(f"start-up {np.median(index):.1f} ms; window 10^9 {np.median(seek):.1f} ms; ", end="")
    print(f"a loader's first batch there {np.median(batch):.1f} ms")


def waiting(folder: Path, seconds: float) -> None:
    """The share of its time that a consumer waits which is busy with each batch for its time."""
    busy = BATCH * SEQ_LEN / H100_TOKENS_PER_SECOND
    stream = TokenStream(folder, seq_len=SEQ_LEN, seed=0, vocab_size=VOCAB)
    print(f"\na consumer of {H100_TOKENS_PER_SECOND / 1e6} Mtokens/s, {WORKERS} threads: ", end="")
    began, waited, most, steps, cpu = time.perf_counter(), 0.0, 0.0, 0, time.process_time()
    with BatchLoader(stream, batch_size=BATCH, last_step=10**6, num_workers=WORKERS) as batches:
        while time.perf_counter() - began < seconds:
            asked = time.perf_counter()
            next(batches)
            took = time.perf_counter() - asked
            waited, most, steps = waited + took, max(most, took), steps + 1
            time.sleep(busy)
    total = time.perf_counter() - began
    print(f"waits {waited / total:.2%} of {total:.0f} s, start-up included", end=" ")
    print(
        f"({steps} batches at {steps * BATCH * SEQ_LEN / total / 1e6:.2f} Mtokens/s, longest wait"
    )
    print(f"{1e3 * most:.1f} ms, {(time.process_time() - cpu) / total:.1%} of a core busy)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores", end=", ")
    print(f"load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}", end=", ")
    print(f"pyarrow {pa.__version__}, numpy {np.__version__}, pandas {pd.__version__}")
    print(f"commit {commit.strip()}: python {' '.join(sys.argv)}")
    print(f"int32, zstd, page checksums, page cache; medians of {args.runs} alternating runs")
    with tempfile.TemporaryDirectory() as name:
        against_a_bare_read(Path(name, "500"), args.runs)
        against_a_row_loop(Path(name, "100"), args.runs)
        start_and_seek(Path(name, "1000"), args.runs)
        waiting(Path(name, "500"), args.seconds)


if __name__ == "__main__":
    main()
