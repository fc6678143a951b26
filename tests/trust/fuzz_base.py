"""The small base that each fuzz case copies, made once by real commands, and what reads its files.

SANDBOX/
  given/              the folder that a command is started in
    corpus/ data/     text of each kind, and its shards, tokenizer and manifest
    stopped/ moving/  outputs of llm-preprocess stopped after a shard, and while it published
    out/ bad/         runs: resumed once and at its end; stopped by a step that was not finite
    bare/ torch/      weights without digests; a tag with a state of the PyTorch trainer
  outside/ neighbour/ home/ keep.txt    surroundings
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import fuzz_case
import yaml
from fuzz_case import Limits
from fuzz_targets import COMMANDS, Command, preprocess

CRASHED = 9  # exit code

MODEL = {
    **{"vocab_size": 300, "max_seq_len": 32, "d_model": 16, "num_layers": 1},
    "attention": {"num_heads": 2},
}
TRAIN: dict[str, Any] = {
    "train_data": "data/train",
    "val_data": "data/val",
    "tokenizer_path": "data/tokenizer",
    "checkpoint_dir": "fresh",
    "seq_len": 16,
    "batch_size": 4,
    "num_steps": 3,
    "dtype": "float32",
    "num_workers": 0,
    "log_every": 1,
    "eval_every": 2,
    "eval_steps": 1,
    "save_every": 3,
    "model": MODEL,
    "optimizer": {"lr": 0.003},
    "scheduler": {"warmup_steps": 2, "type": "constant"},  # the same for every num_steps
}
DIVERGING = {
    "checkpoint_dir": "bad",
    "optimizer": {"lr": 1e30},
    "scheduler": {"warmup_steps": 0, "type": "constant"},
}
PREPROCESS: dict[str, Any] = {
    "input": ["corpus"],
    "output": "pre",
    "vocab_size": 300,
    "val_fraction": 0.2,
    "shard_size": 400,
    "workers": 1,
}


def write_inputs(sandbox: Path) -> None:
    """The surroundings, the corpus and the configs."""
    for name in ("outside/folder", "neighbour", "home", "tmp"):
        (sandbox / name).mkdir(parents=True)
    for name in ("keep.txt", "outside/keep.txt", "outside/folder/a.txt", "neighbour/b.txt"):
        (sandbox / name).write_text(f"precious {name}\n")
    (sandbox / "home/.profile").write_text("precious\n")
    given = sandbox / "given"
    rng = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "far", "away", "tree", "house"]
    texts = [" ".join(rng.choices(words, k=40)) for _ in range(40)]
    (given / "corpus").mkdir(parents=True)
    rows = [json.dumps({"text": text, "id": number}) + "\n" for number, text in enumerate(texts)]
    (given / "corpus/a.jsonl").write_text("".join(rows[:12]))
    with gzip.open(given / "corpus/b.jsonl.gz", "wt") as file:
        file.write("".join(rows[12:24]))
    (given / "corpus/c.txt").write_text("\n".join(texts[24:30]))
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": texts[30:]}), given / "corpus/d.parquet")
    more = TRAIN | {"checkpoint_dir": "out"}
    for name, config in {
        "fresh.yaml": TRAIN,
        "fresh.json": TRAIN,
        "first.yaml": more | {"num_steps": 4},
        "second.yaml": more | {"num_steps": 6},
        "more.yaml": more | {"num_steps": 8},
        "bad.yaml": TRAIN | DIVERGING,
        "init.yaml": TRAIN | {"checkpoint_dir": "inited", "init_from": "bare/best", "num_steps": 1},
        "pre.yaml": PREPROCESS,
        "pre.json": PREPROCESS,
        "load.yaml": {
            **{"input": "corpus/c.txt", "output": "pre", "workers": 1, "val_fraction": 0},
            "tokenizer_path": "data/tokenizer",
        },
    }.items():
        dump = json.dumps if name.endswith(".json") else yaml.safe_dump
        (given / name).write_text(dump(config))


def build(work: Path) -> None:
    """work/base: the sandbox, variants of its files, the weights of a resumed run; work/modules.

    Every command that the cases run must do its work on the base as it is.

    Raises:
        AssertionError: one does not.
    """
    limits = Limits(seconds=600)  # steps are compiled for the first time
    making = work / "making"
    shutil.rmtree(making, ignore_errors=True)
    sandbox, noted = making / "sandbox", work / "modules"

    def run(where: Path, command: Command) -> None:
        ended = fuzz_case.run(where, command, limits, lambda: _note_modules(noted))
        code = 3 if "bad.yaml" in command.args else 0
        assert ended.code == code, (command.args, ended.code, ended.failures, ended.stderr)

    in_fork(lambda: write_inputs(sandbox))
    _run_all(sandbox, run, limits)
    in_fork(lambda: _write_variants(making / "variants", sandbox / "given"))
    shutil.rmtree(sandbox / "log")
    for name, command in COMMANDS.items():
        copy = work / "whole"
        shutil.copytree(sandbox, copy, symlinks=True)
        run(copy, command)
        if name == "resume auto":
            shutil.copyfile(copy / "given/out/final.safetensors", making / "resumed.safetensors")
        shutil.rmtree(copy)
    noted.write_text("\n".join(sorted(set(noted.read_text().split()))))
    making.rename(work / "base")


def in_fork(task: Callable[[], None]) -> None:
    """Do it in a process of its own: libraries start threads, which no later fork may inherit."""
    if (pid := os.fork()) == 0:
        end_with(task)
    assert os.waitpid(pid, 0)[1] == 0, "see above"


def spread(
    numbers: Sequence[int], processes: int, work: Callable[[int], Any], start: Callable[[int], Any]
) -> Iterator[Any]:
    """`work(number)` of all numbers, each process taking every n-th; what is not None, as it comes.

    Args:
        work: gives JSON.
        start: called in each process with its number, before its work.
    """
    reading, writing = os.pipe()

    def work_off(process: int) -> None:
        os.close(reading)
        start(process)
        with os.fdopen(writing, "w") as out:
            for number in numbers[process::processes]:
                if (result := work(number)) is not None:
                    out.write(json.dumps(result) + "\n")
                    out.flush()

    pids = []
    for process in range(processes):
        if (pid := os.fork()) == 0:
            end_with(partial(work_off, process))
        pids.append(pid)
    os.close(writing)
    with os.fdopen(reading) as results:
        yield from map(json.loads, results)
    if any(os.waitpid(pid, 0)[1] for pid in pids):
        raise SystemExit("a process of this script itself failed")


def end_with(task: Callable[[], None]) -> NoReturn:
    """Do it and end this process."""
    code = 1
    try:
        task()
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


def _run_all(sandbox: Path, run: Callable[[Path, Command], None], limits: Limits) -> None:
    """What makes the base of its inputs."""
    given = sandbox / "given"
    journal, moves = (given / f"{name}/.preprocess" for name in ("stopped", "moving"))
    run(sandbox, preprocess("pre.yaml", "data", "--output=data"))
    for name, there in (
        ("continue", lambda: b'"sha256"' in (journal / "journal.jsonl").read_bytes()),
        ("complete", lambda: (moves / "moves.json").exists()),
    ):
        crash = partial(_crash_when, there)
        assert fuzz_case.run(sandbox, COMMANDS[name], limits, crash).code == CRASHED, name
    run(sandbox, Command(("llm-train", "first.yaml")))
    run(sandbox, Command(("llm-train", "second.yaml", "--resume", "out/step0000003")))
    assert (given / "out/.resumed.json").exists()
    run(sandbox, Command(("llm-train", "bad.yaml")))
    snapshot = json.loads((given / "out/best.config.json").read_text())
    del snapshot["checkpoint"]
    for folder, tag in (("bare", "best"), ("torch", "final")):
        (given / folder).mkdir()
        shutil.copyfile(given / f"out/{tag}.safetensors", given / f"{folder}/{tag}.safetensors")
        (given / f"{folder}/{tag}.config.json").write_text(json.dumps(snapshot))
    run(sandbox, COMMANDS["to-torch"])
    os.rename(given / "out/final.state.pt", given / "torch/final.state.pt")


def _write_variants(folder: Path, given: Path) -> None:
    from fuzz_variants import write_variants

    write_variants(folder, given)


def _crash_when(there: Callable[[], bool]) -> None:
    """End this process as a crash would, at the first flush of a file after `there` is true."""
    flush = os.fsync

    def flush_or_crash(descriptor: int) -> None:
        flush(descriptor)
        with contextlib.suppress(FileNotFoundError):
            if there():
                os._exit(CRASHED)

    os.fsync = flush_or_crash


def _note_modules(noted: Path) -> None:
    """At the end of this process add what it imported to the file."""
    end = threading._shutdown  # type: ignore[attr-defined]

    def note_and_end() -> None:
        with noted.open("a") as file:
            file.write("\n".join(sys.modules) + "\n")
        end()

    threading._shutdown = note_and_end  # type: ignore[attr-defined]
