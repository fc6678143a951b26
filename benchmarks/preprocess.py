"""How fast llm-preprocess writes tokens, against `datasets.map` with the same tokenizer, text and
number of processes. Usage:

python benchmarks/preprocess.py [--megabytes 200] [--runs 3] [--workers N]
python benchmarks/preprocess.py --memory [--megabytes 1000]

The text is the Python sources of this environment, mixed line by line. `datasets.map` starts from
a loaded dataset and writes its Arrow cache; llm-preprocess starts from JSON lines, and splits,
counts, checks and compresses, with gigatoken and without. With --memory, nothing is compared: a
whole run, a BPE trained in it included, and the most memory that its processes held together.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import platform
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import datasets
import psutil

DOCUMENT_LINES = 80
VOCAB_SIZE = 8192


def documents(characters: int) -> Iterator[str]:
    """Documents of some 80 lines, each line from anywhere, one in a hundred words never seen."""
    draw = random.Random(0)
    lines: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py")):
        lines += path.read_text(encoding="utf-8", errors="ignore").splitlines()
        if len(lines) > 1_500_000:
            break
    while characters > 0:
        chosen = draw.choices(lines, k=DOCUMENT_LINES)
        text = "\n".join(
            f"{line} {draw.getrandbits(40):x}" if draw.random() < 0.1 else line for line in chosen
        )
        characters -= len(text)
        yield text


def write_text(path: Path, characters: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for text in documents(characters):
            file.write(json.dumps({"text": text}) + "\n")


def ours(folder: Path, number: int, workers: int, engine: str) -> int:
    from light_llm.preprocess import PreprocessConfig, preprocess

    config = PreprocessConfig(
        input=(str(folder / "text.jsonl"),),
        output=folder / f"{engine}{number}",
        tokenizer_path=str(folder / "tokenizer"),
        workers=workers,
        engine=engine,
    )
    summary = preprocess(config)
    return summary.train.tokens + summary.val.tokens


def theirs(folder: Path, dataset: datasets.Dataset, workers: int) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
    end = tokenizer.eos_token_id

    def tokenize(batch: dict) -> dict:
        ids = tokenizer(batch["text"], return_attention_mask=False, verbose=False)["input_ids"]
        return {"tokens": [[*row, end] for row in ids]}

    dataset.map(tokenize, batched=True, num_proc=workers, load_from_cache_file=False)


def compare(folder: Path, runs: int, workers: int) -> None:
    from light_llm.tokenizer import train_bpe

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    datasets.disable_progress_bars()
    train_bpe(documents(10_000_000), VOCAB_SIZE).save(folder / "tokenizer")
    dataset = datasets.load_dataset(
        "json", data_files=str(folder / "text.jsonl"), split="train", cache_dir=str(folder / "hf")
    )
    ways: dict[str, Callable[[int], int | None]] = {
        "llm-preprocess": lambda number: ours(folder, number, workers, "auto"),
        "with tokenizers": lambda number: ours(folder, number, workers, "tokenizers"),
        "datasets.map": lambda number: theirs(folder, dataset, workers),
    }
    taken: dict[str, list[tuple[float, ...]]] = {name: [] for name in ways}
    tokens = 0
    for number in range(runs):
        for name, work in ways.items():
            before = spent()
            tokens = work(number) or tokens
            taken[name].append(tuple(map(operator.sub, spent(), before)))
    print(f"{tokens:,} tokens; medians of {runs} alternating runs, {workers} processes each")
    print(f"{'':16}{'tokens/s':>12}{'tokens/cpu s':>14}")
    middle = {}
    for name, rows in taken.items():
        middle[name] = [tokens / statistics.median(column) for column in zip(*rows, strict=True)]
        print(f"{name:16}{middle[name][0]:12,.0f}{middle[name][1]:14,.0f}")
    clock, cpu = map(operator.truediv, middle["llm-preprocess"], middle["datasets.map"])
    print(f"{'ratio':16}{clock:12.2f}{cpu:14.2f}")


def spent() -> tuple[float, float]:
    """Seconds by the clock, and of processor time, ended children's included."""
    times = os.times()
    return time.perf_counter(), sum(times[:4])


def memory(folder: Path, workers: int) -> None:
    command = [Path(sys.executable).with_name("llm-preprocess"), "--input", folder / "text.jsonl"]
    command += ["--output", folder / "out", "--workers", str(workers)]
    began = time.perf_counter()
    process = subprocess.Popen([*map(str, command)])
    parent, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        peak = max(peak, held(parent))
        time.sleep(0.05)
    if process.returncode:
        sys.exit(process.returncode)
    print(f"peak memory {peak / 1e9:.2f} GB, {time.perf_counter() - began:.0f} s")


def held(parent: psutil.Process) -> int:
    """Bytes that a process and its children have in memory, shared pages counted for each."""
    total = 0
    try:
        for process in [parent, *parent.children(recursive=True)]:
            total += process.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    megabytes = args.megabytes or (1000 if args.memory else 200)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python", end=" ")
    print(platform.python_version(), *(f"{n} {version(n)}" for n in ("tokenizers", "datasets")))
    print(f"commit {commit.strip()}: python {' '.join(sys.argv)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "text.jsonl", megabytes * 10**6)
        if args.memory:
            memory(folder, args.workers)
        else:
            compare(folder, args.runs, args.workers)


if __name__ == "__main__":
    main()
