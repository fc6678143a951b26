"""Steps and seconds that Muon takes to the validation loss with which AdamW ends.

    python benchmarks/optimizers.py [--config configs/quickstart.yaml] [--write]

Both optimizers get the learning rate of the grid that ends with the lowest validation loss at the
first seed. Then each trains with every seed at its own rate. The same number of steps and the same
schedule is given to both, so a run of Muon that is to end earlier might decay its rate earlier and
be quicker still. The runs alternate, and the seconds are the median seconds of a step of all runs
times the steps: evaluations, saves and compiling are left out. Every run is `llm-train` with the
config, changed in nothing but the keys that this program sets (see `config_of`).

Needs the config's shards: for the quickstart, `make quickstart` first. `--write` adds the result to
benchmarks/OPTIMIZERS.md, in the place of an earlier one of the same config.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import yaml

BIN = Path(sys.executable).parent
PAGE = Path(__file__).with_name("OPTIMIZERS.md")
OPTIMIZERS = ("adamw", "muon")
INTRODUCTION = """# Muon beside AdamW

Made by `python benchmarks/optimizers.py --write`, which says how. One learning rate serves all
weights of a model: with `optimizer.type: muon`, the matrices inside layers follow Muon, the rest
AdamW.
"""


class Run(NamedTuple):
    losses: dict[int, float]  # step -> validation loss
    step_seconds: list[float]

    @property
    def final(self) -> float:
        return self.losses[max(self.losses)]

    def reaches(self, loss: float) -> int | None:
        """The first evaluated step with a validation loss of at most `loss`."""
        return next((step for step, found in self.losses.items() if found <= loss), None)


def config_of(given: argparse.Namespace, optimizer: str, lr: float, seed: int) -> dict[str, Any]:
    config = yaml.safe_load(given.config.read_text())
    for key in ("train_data", "val_data", "tokenizer_path"):
        config[key] = str(Path(config[key]).resolve())
    config["optimizer"] = config.get("optimizer", {}) | {"type": optimizer, "lr": lr}
    for key in ("batch_size", "seq_len", "num_steps", "eval_steps"):
        config[key] = getattr(given, key) or config[key]
    if given.num_steps:  # a tenth, as a short run needs it
        config["scheduler"] = config.get("scheduler", {}) | {"warmup_steps": given.num_steps // 10}
    steps = config["num_steps"]
    return config | {
        "seed": seed,
        "checkpoint_dir": "out",
        "eval_every": max(1, steps // given.evaluations),
        "save_every": steps,
        "log_every": 1,
    }


def train(given: argparse.Namespace, optimizer: str, lr: float, seed: int) -> Run:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = config_of(given, optimizer, lr, seed)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        done = subprocess.run(
            [BIN / "llm-train", "config.yaml"],
            cwd=folder,
            env=os.environ | {"WANDB_MODE": "disabled"},
            capture_output=True,
            text=True,
        )
        if done.returncode == 3:  # the rate was too high: not finite
            return Run({0: float("inf")}, [])
        if done.returncode:
            raise SystemExit(done.stderr)
        lines = [json.loads(line) for line in (folder / "out/metrics.jsonl").open()]
    losses = {line["step"]: line["val/loss"] for line in lines if "val/loss" in line}
    run = Run(losses, [line["perf/step_seconds"] for line in lines if "train/loss" in line][2:])
    print(f"{optimizer:5} lr {lr:g} seed {seed}: {run.final:.4f}", file=sys.stderr, flush=True)
    return run


Finals = dict[str, dict[float, float]]  # optimizer -> learning rate -> validation loss


def measure(given: argparse.Namespace) -> tuple[Finals, dict[str, list[Run]]]:
    """The final losses of the grid, and the runs of each seed at the best rates."""
    runs: dict[str, dict[float, Run]] = {name: {} for name in OPTIMIZERS}
    for lr in given.lr:
        for name in OPTIMIZERS:
            runs[name][lr] = train(given, name, lr, given.seeds[0])
    finals = {name: {lr: run.final for lr, run in found.items()} for name, found in runs.items()}
    best = {name: min(found, key=found.__getitem__) for name, found in finals.items()}
    seeded = {name: [runs[name][best[name]]] for name in OPTIMIZERS}
    for seed in given.seeds[1:]:
        for name in OPTIMIZERS:
            seeded[name].append(train(given, name, best[name], seed))
    return finals, seeded


def page(given: argparse.Namespace, finals: Finals, seeded: dict[str, list[Run]]) -> Iterator[str]:
    config = config_of(given, "adamw", 0.0, 0)
    keys = ("num_steps", "batch_size", "seq_len")
    yield f"## {given.config}: " + ", ".join(f"{key} {config[key]}" for key in keys)
    yield ""
    yield f"{date.today()}, {os.cpu_count()} cores, seeds {', '.join(map(str, given.seeds))}."
    yield ""
    yield "Final validation loss of the first seed, by learning rate:"
    yield ""
    yield "| optimizer | " + " | ".join(f"{lr:g}" for lr in given.lr) + " |"
    yield "|---" * (len(given.lr) + 1) + "|"
    for name in OPTIMIZERS:
        yield f"| {name} | " + " | ".join(f"{finals[name][lr]:.4f}" for lr in given.lr) + " |"
    yield ""
    every = config["eval_every"]
    yield f"Each at its best rate. A validation loss is known every {every} steps."
    yield ""
    yield "| seed | AdamW ends with | Muon ends with | Muon has AdamW's loss at step |"
    yield "|---|---|---|---|"
    reached = []
    for seed, adamw, muon in zip(given.seeds, *seeded.values(), strict=True):
        reached.append(muon.reaches(adamw.final))
        step = "never" if reached[-1] is None else str(reached[-1])
        yield f"| {seed} | {adamw.final:.4f} | {muon.final:.4f} | {step} |"
    yield ""
    seconds = {
        name: statistics.median(second for run in seeded[name] for second in run.step_seconds)
        for name in OPTIMIZERS
    }
    per_step = ", ".join(f"{name} {1000 * seconds[name]:.0f} ms" for name in OPTIMIZERS)
    yield f"A step takes {per_step} (median of {len(given.seeds)} runs)."
    if None in reached:
        yield "Muon did not reach AdamW's loss with every seed."
    else:
        steps = statistics.median(reached)
        share = steps / config["num_steps"]
        ratio = share * seconds["muon"] / seconds["adamw"]
        yield f"Muon takes {share:.2f} of AdamW's steps, and {ratio:.2f} of its seconds."
    yield ""


def write(section: str) -> None:
    """Put the section into the page, in the place of one with the same first line."""
    old = PAGE.read_text() if PAGE.exists() else INTRODUCTION
    head, *sections = old.split("\n## ")
    title = section.splitlines()[0]
    kept = [f"## {text}" for text in sections if f"## {text}".splitlines()[0] != title]
    PAGE.write_text("\n\n".join(part.strip() for part in [head, *kept, section]) + "\n")


def numbers(kind: type) -> Any:
    return lambda text: [kind(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("--lr", type=numbers(float), default=[2e-3, 4e-3, 8e-3, 1.6e-2])
    parser.add_argument("--seeds", type=numbers(int), default=[1, 2, 3])
    parser.add_argument("--num-steps", type=int, help="in the place of the config's")
    parser.add_argument("--batch-size", type=int, help="in the place of the config's")
    parser.add_argument("--seq-len", type=int, help="in the place of the config's")
    parser.add_argument("--eval-steps", type=int, help="in the place of the config's")
    parser.add_argument("--evaluations", type=int, default=24)
    parser.add_argument("--write", action="store_true", help="also into benchmarks/OPTIMIZERS.md")
    given = parser.parse_args()
    section = "\n".join(page(given, *measure(given)))
    print(section)
    if given.write:
        write(section)


if __name__ == "__main__":
    main()
