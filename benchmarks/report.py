"""Processor time that a refresh of report.html takes, by the length of metrics.jsonl.

python benchmarks/report.py
"""

from __future__ import annotations

import json
import math
import random
import tempfile
import time
from pathlib import Path

from light_jax.config import load_config
from light_jax.runs.facts import Facts, parameters_of, settings_of
from light_jax.runs.history import History
from light_jax.runs.report import NAME, Now, render
from light_llm.files.disk import write_atomically

LINES = (600, 10_000, 100_000)
CONFIG = Path(__file__).parents[1] / "configs/medium.yaml"


def write_metrics(path: Path, lines: int) -> None:
    """What a run of so many logged steps leaves, with an evaluation every 500."""
    draw = random.Random(0).random
    with path.open("w") as file:
        for step in range(1, lines + 1):
            falls = 5 * math.exp(-8 * step / lines)
            values = {"time": float(step), "tokens": 1000 * step, "train/loss": 3 + falls + draw()}
            values |= {"train/lr": 3e-4, "train/grad_norm": draw(), "train/mfu": 0.4 + draw() / 9}
            values |= {"train/tokens_per_second": 1e5 * draw(), "perf/data_wait": draw() / 9}
            file.write(json.dumps({"step": step, **values}) + "\n")
            if step % 500 == 0:
                file.write(json.dumps({"step": step, "val/loss": 3.1 + falls}) + "\n")


def main() -> None:
    cfg = load_config(CONFIG)
    settings, parameters = settings_of(cfg), parameters_of(cfg)
    for lines in LINES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_metrics(folder / "metrics.jsonl", lines)
            facts = Facts("run", lines, 1000, 8, 10_000, settings, parameters, (), ())
            history = History(folder)
            times = []
            for _ in range(4):
                begun, wall = time.thread_time(), time.perf_counter()
                history.update()
                text = render(folder, facts, history, Now("running", time.time()))
                write_atomically(folder / NAME, text.encode())
                times.append((time.thread_time() - begun, time.perf_counter() - wall))
            first, later = times[0], sorted(times[1:])[1]
            print(
                f"{lines:>7,} lines  a refresh {1e3 * later[0]:.0f} ms of processor time, "
                f"{1e3 * later[1]:.0f} ms in all; the first {1e3 * first[0]:.0f} ms; "
                f"{len(text) / 1e3:.0f} kB"
            )


if __name__ == "__main__":
    main()
