"""Where the time of llm-preprocess goes. Usage:

python benchmarks/preprocess_stages.py [--megabytes 200]

One process reads, one of its threads encodes, and another writes: each stage is told in seconds of
its own thread, beside the clock. Two runs, of which the second counts: the first imports. Then
what reads the shards next: `llm-data stats`, and the index that training makes of them.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from preprocess import VOCAB_SIZE, documents, write_text

from light_jax.data import TokenStream
from light_llm.preprocess import PreprocessConfig, part, pipeline, preprocess, shards, sides
from light_llm.tokenizer import train_bpe

STAGES = (
    (pipeline, "check_agreement", "start: tokenizer compared with transformers"),
    (part, "_encoder", "start: gigatoken compared with tokenizers"),
    (part, "encode", "encode"),
    (part, "text_hashes", "hash of each text"),
    (part, "row_batch", "columns"),
    (sides.Sides, "_write", "parquet, zstd"),
    (shards.ShardWriter, "close", "flush, SHA-256"),
)
READ = "read and parse"


def measured(work: Callable[..., Any], label: str, taken: dict[str, float]) -> Callable[..., Any]:
    @functools.wraps(work)
    def timed(*args: Any, **options: Any) -> Any:
        began = time.thread_time()
        try:
            return work(*args, **options)
        finally:
            taken[label] += time.thread_time() - began

    return timed


def read(taken: dict[str, float], chunks: Callable[..., Iterator[Any]]) -> Callable[..., Any]:
    def timed(*args: Any) -> Iterator[Any]:
        next_chunk = measured(chunks(*args).__next__, READ, taken)
        while True:
            try:
                yield next_chunk()
            except StopIteration:
                return

    return timed


def first_shard(output: Path, began: float, seen: list[float]) -> None:
    while not seen:
        if any(output.rglob("shard_00000.parquet")):
            seen.append(time.perf_counter() - began)
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    args = parser.parse_args()
    taken: dict[str, float] = defaultdict(float)
    for owner, name, label in STAGES:
        setattr(owner, name, measured(getattr(owner, name), label, taken))
    part.chunks = read(taken, part.chunks)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "text.jsonl", args.megabytes * 10**6)
        train_bpe(documents(10_000_000), VOCAB_SIZE).save(folder / "tokenizer")
        output, seen = folder / "out", list[float]()
        config = PreprocessConfig(
            input=(str(folder / "text.jsonl"),),
            output=output,
            tokenizer_path=str(folder / "tokenizer"),
            shard_size=10_000_000,
        )
        for _ in range(2):
            shutil.rmtree(output, ignore_errors=True)
            taken.clear()
            began, cpu = time.perf_counter(), time.process_time()
            seen = []
            threading.Thread(target=first_shard, args=(output, began, seen), daemon=True).start()
            summary = preprocess(config)
            clock, cpu = time.perf_counter() - began, time.process_time() - cpu
        tokens = summary.train.tokens + summary.val.tokens
        print(f"{tokens:,} tokens of {args.megabytes} MB on {os.cpu_count()} cores: ", end="")
        print(f"{clock:.2f} s by the clock, {cpu:.2f} s of processor time")
        print(f"first shard, of 10,000,000 tokens: after {seen[0]:.2f} s")
        for label, seconds in taken.items():
            print(f"{label:46}{seconds:7.2f} s {seconds / cpu:5.0%}")
        print(f"{'other, and other threads':46}{cpu - sum(taken.values()):7.2f} s")
        began = time.perf_counter()
        TokenStream(output / "train", seq_len=1024, seed=0)
        seconds = time.perf_counter() - began
        print(f"the loader's index of {summary.train.files} shards: {seconds:.3f} s")
        began = time.perf_counter()
        command = [Path(sys.executable).with_name("llm-data"), "stats", output / "train"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
        print(f"llm-data stats: {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
