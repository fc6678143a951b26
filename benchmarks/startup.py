"""What a user waits for: starts, first tokens, mistakes, --help, and what the host does in a run.

    python benchmarks/startup.py [--runs 5]

Prints the page benchmarks/STARTUP.md: each goal with the median of the runs and the command or the
part of this file that gives it, and the packages whose import takes longest. A tiny model is
trained and run on shards that are made here; the compiled programs are in the cache. What happens
inside a run is measured in this process (`host_work.py`). On a machine that does other work too,
the seconds of processor time say more than the seconds of the clock: both are printed.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from light_llm.tokenizer import train_char

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[1]
COMMANDS = ("llm-train", "llm-run", "llm-preprocess", "llm-data", "llm-convert", "llm-parity")
PROMPT = "the cat"
CONFIG = {
    "train_data": "shards",
    "val_data": "shards",
    "checkpoint_dir": "out",
    "tokenizer_path": "tokenizer",
    "seq_len": 64,
    "batch_size": 8,
    "num_steps": 3,
    "dtype": "float32",
    "log_every": 1,
    "eval_every": 3,
    "eval_steps": 1,
    "model": {"max_seq_len": 64, "d_model": 64, "num_layers": 2, "attention": {"num_heads": 4}},
    "scheduler": {"warmup_steps": 1},
}


class Spent(NamedTuple):
    """Seconds."""

    wall: float
    cpu: float


class Row(NamedTuple):
    what: str
    goal: str
    measured: str
    how: str


def prepare(folder: Path) -> None:
    """Shards, a tokenizer and configs: one that is right, one with a mistyped key."""
    tokenizer = train_char(["abcdefghijklmnopqrstuvwxyz ."])
    tokenizer.save(folder / "tokenizer")
    config = CONFIG | {"model": CONFIG["model"] | {"vocab_size": tokenizer.vocab_size}}  # type: ignore[operator]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    (folder / "bad.yaml").write_text(yaml.safe_dump(config | {"batchsize": 8}))
    (folder / "shards").mkdir()
    rng = np.random.default_rng(0)
    ids = rng.integers(2, tokenizer.vocab_size, (512, 100)).tolist()
    table = pa.table({"length": [100] * 512, "tokens": pa.array(ids, pa.list_(pa.int32()))})
    pq.write_table(table, folder / "shards/00000.parquet")


def spent(
    folder: Path,
    command: Sequence[str],
    until: Callable[[bytes], bool] | None,
    *,
    messages: bool = False,
) -> Spent:
    """From the start of a command until what it prints is enough; None is its end.

    Processor time is that of the whole command.

    Args:
        messages: what it prints on stderr counts, not on stdout.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(
        [BIN / command[0], *command[1:]],
        cwd=folder,
        stdout=subprocess.DEVNULL if messages else subprocess.PIPE,
        stderr=subprocess.PIPE if messages else subprocess.DEVNULL,
    )
    stream = process.stderr if messages else process.stdout
    output, wall = b"", 0.0
    while piece := os.read(stream.fileno(), 4096):  # type: ignore[union-attr]
        output += piece
        if until is not None and not wall and until(output):
            wall = time.perf_counter() - start
    code = process.wait()
    if until is None:
        wall = time.perf_counter() - start
    assert wall, output.decode()
    assert code in (0, 2), output.decode()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Spent(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def a_train(folder: Path) -> Spent:
    subprocess.run(["rm", "-rf", folder / "out"], check=True)
    return spent(
        folder, ["llm-train", "tiny.yaml"], lambda text: b"\nstep 1/" in text, messages=True
    )


def a_mistake(folder: Path, *flags: str) -> Spent:
    return spent(folder, ["llm-train", "bad.yaml", *flags], None)


def a_token(folder: Path, backend: str) -> Spent:
    command = ["llm-run", "--checkpoint", "out/final", "--prompt", PROMPT, "--max-tokens", "8"]
    command += ["--seed", "0", "--backend", backend]
    return spent(folder, command, lambda text: len(text) > len(PROMPT))


def of_commands(folder: Path, runs: int) -> list[Row]:
    """Starts of commands, in turn, so that a busy minute touches all of them alike."""
    measured: dict[str, list[Spent]] = defaultdict(list)
    a_train(folder)  # compiles
    for backend in ("torch", "jax"):
        a_token(folder, backend)
    for _ in range(runs):
        measured["train"].append(a_train(folder))
        measured["mistake"].append(a_mistake(folder))
        measured["check"].append(a_mistake(folder, "--check"))
        for backend in ("torch", "jax"):
            measured[backend].append(a_token(folder, backend))
        for name in COMMANDS:
            measured[name].append(spent(folder, [name, "--help"], None))

    def row(key: str, what: str, goal: str, how: str) -> Row:
        wall, cpu = (statistics.median(column) for column in zip(*measured[key], strict=True))
        return Row(what, goal, f"{wall:.2f} s, {cpu:.2f} s CPU", f"`{how}`")

    rows = [
        row("train", "start to step 1", "4 s", "llm-train tiny.yaml"),
        row("mistake", "a mistyped key is told", "0.5 s", "llm-train bad.yaml"),
        row("check", "the same by a check", "0.5 s", "llm-train bad.yaml --check"),
    ]
    for backend in ("torch", "jax"):
        how = f"llm-run --checkpoint out/final --prompt '{PROMPT}' --backend {backend}"
        rows.append(row(backend, f"first token, {backend}", "2 s", how))
    return rows + [row(name, f"{name} --help", "0.3 s", f"{name} --help") for name in COMMANDS]


def imports(folder: Path, runs: int) -> list[tuple[str, float]]:
    """The packages that take longest to import in `llm-train`, in seconds of their own modules."""
    totals: dict[str, list[float]] = defaultdict(list)
    for _ in range(runs):
        subprocess.run(["rm", "-rf", folder / "out"], check=True)
        command = [sys.executable, "-X", "importtime", BIN / "llm-train", "tiny.yaml"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        of_run: dict[str, float] = defaultdict(float)
        for own, name in re.findall(r"import time: +(\d+) \| +\d+ \| +([\w.]+)", done.stderr):
            of_run[name.partition(".")[0]] += int(own) / 1e6
        for name, seconds in of_run.items():
            totals[name].append(seconds)
    medians = {name: statistics.median(seconds) for name, seconds in totals.items()}
    return sorted(medians.items(), key=lambda item: -item[1])[:10]


def page(rows: Sequence[Row], packages: Sequence[tuple[str, float]], runs: int) -> str:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    names = ("jax", "flax", "orbax-checkpoint", "torch", "numpy", "pyarrow")
    lines = [
        "# Waiting",
        "",
        "Made by `python benchmarks/startup.py`; do not edit.",
        "",
        f"- machine: {os.cpu_count()} cores; load {os.getloadavg()[1]:.1f} over five minutes, so "
        "other work shared them",
        f"- python {sys.version.split()[0]}, "
        + ", ".join(f"{name} {version(name)}" for name in names),
        f"- commit: {commit} (+ is a changed tree), {date.today()}; medians of {runs}",
        "- CPU is of the whole command, its end included; the clock stops where the row says",
        "",
        "| what | goal | measured | how |",
        "|---|---|---|---|",
        *(f"| {row.what} | {row.goal} | {row.measured} | {row.how} |" for row in rows),
        "",
        "The packages that take longest to import in `llm-train` (`python -X importtime`), in the "
        "time of their own modules:",
        "",
        "| package | seconds |",
        "|---|---|",
        *(f"| {name} | {seconds:.3f} |" for name, seconds in packages),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        rows, packages = of_commands(folder, runs), imports(folder, runs)
        inside = [sys.executable, Path(__file__).with_name("host_work.py"), "--runs", str(runs)]
        done = subprocess.run(
            [*inside, folder / "tiny.yaml"],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    rows += [Row(*line.split("\t")) for line in done.stdout.splitlines()]
    text = page(rows, packages, runs)
    print(text, end="")
    (ROOT / "benchmarks/STARTUP.md").write_text(text)


if __name__ == "__main__":
    main()
