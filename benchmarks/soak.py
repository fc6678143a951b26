"""A long run beside one that is interrupted again and again: both must end with the same bits.

    python benchmarks/soak.py [--steps 2000] [--interruptions 100] [--seed 0] [--write]

Trains a tiny model twice by `llm-train`. The first run is left alone: its memory, open files and
threads are read from /proc as it goes on, and must not grow. The second gets SIGKILL, SIGTERM or
SIGSTOP (SIGCONT follows) at random moments of starts, steps, saves and evaluations, and is started
again with `--resume auto` until it has ended. Then weights, state and metrics.jsonl of the two are
compared, and what lies in their folders. `--write` keeps the page benchmarks/SOAK.md. Exit code 1:
a law is broken. The seed gives which signal comes at which step; the machine's speed decides the
rest. Linux only.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from soak_run import Life, Resources, differences, prepare, wait_for, whole_tags

ROOT = Path(__file__).parents[1]
SETTLED = 200
"""The step from which on nothing may grow: caches are full, every kind of work was done."""
MOST_GROWTH = 16 * 1024
"""KiB per 1,000 steps, which are 100 saves. One state in memory that a save does not free would add
eight times as much. The heap moves by less: each save has its own threads, and orbax asks
tensorstore (0.1.86) for its counters, which leaks some 17 KiB each time."""
FEW = 2  # a pool may start its last thread late; a leak shows in each of 170 saves
UNBROKEN = """\
After every signal that ended the process, each checkpoint that was there was whole. At the end both
folders had the same bits of weights, optimizer state and all else of `best`, `final` and the last
steps; the same lines in `metrics.jsonl`, each step once; the same names of files, so no temporary
one."""
PLACES = {"start": 25, "step": 30, "save": 25, "evaluation": 20}
SIGNALS = {"SIGKILL": 40, "SIGTERM": 30, "SIGSTOP": 30}


class Interruption(NamedTuple):
    signal: str
    place: str
    step: int  # it comes at this step or later; of no meaning in a start
    moment: float  # 0 to 1: when in a start; how long after a step, a save, an evaluation began
    pause: float  # seconds until SIGCONT


class Outcome(NamedTuple):
    counts: collections.Counter[tuple[str, str]]
    lives: int
    seconds: float
    most: Resources
    broken: list[str]


def plan(count: int, steps: int, seed: int) -> list[Interruption]:
    """Random interruptions in the order in which they come. A start can be interrupted only where
    one follows, so after a signal that ended the process."""
    rng = random.Random(seed)
    at = iter(sorted(rng.sample(range(5, int(0.96 * steps)), count)))
    planned: list[Interruption] = []
    for _ in range(count):
        places = dict(PLACES)
        if planned and planned[-1].signal == "SIGSTOP":
            del places["start"]
        (name,) = rng.choices(list(SIGNALS), list(SIGNALS.values()))
        (place,) = rng.choices(list(places), list(places.values()))
        planned.append(Interruption(name, place, next(at), rng.random(), rng.uniform(0.05, 1.5)))
    return planned


def undisturbed(config: Path) -> tuple[list[tuple[int, Resources]], float, float]:
    """(step and resources again and again, seconds to the first step, seconds in all)."""
    begun, samples, ready = time.monotonic(), [], 0.0
    life = Life(config)
    while life.ended() is None:
        if life.training:
            ready = ready or time.monotonic() - begun
            if (now := life.resources()) is not None:
                samples.append((life.last_step(), now))
        time.sleep(0.1)
    assert life.ended() == 0, life.log.read_text()
    return samples, ready, time.monotonic() - begun


def interrupted(config: Path, planned: list[Interruption], startup: float) -> Outcome:
    """The same run under `planned`, started again until it has ended."""
    out, begun, left = config.parent / "out", time.monotonic(), list(planned)
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    most, broken, lives, code = Resources(0, 0, 0), [], 0, None
    while code != 0:
        life, code = Life(config), None
        lives += 1
        while code is None:
            due = left[0] if left else None
            if not wait_for(life, due, startup):
                code = life.wait()
                break
            assert due is not None
            left.pop(0)
            if (now := life.resources()) is not None and life.training:
                most = Resources(*map(max, most, now))
            life.send(getattr(signal, due.signal))
            counts[due.signal, due.place] += 1
            if due.signal == "SIGSTOP":
                time.sleep(due.pause)
                life.send(signal.SIGCONT)
            else:
                code = life.wait()
        if code not in (0, -9, -15, 143):
            raise AssertionError(f"exit code {code}:\n{life.log.read_text()}")
        broken += whole_tags(out)
        if sum(counts.values()) % 10 == 0:
            told = f"{sum(counts.values())} interruptions, step {life.last_step()}"
            print(f"{told}, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    broken += [f"the run ended before {due}" for due in left]
    return Outcome(counts, lives, time.monotonic() - begun, most, broken)


def at_step(samples: list[tuple[int, Resources]], first: int, last: int) -> Resources:
    """Of what was read from step `first` to `last`: the median of memory, the least of the rest. A
    save or an evaluation that is under way has files and threads of its own."""
    rss, files, threads = zip(*(now for step, now in samples if first <= step <= last), strict=True)
    return Resources(round(statistics.median(rss)), min(files), min(threads))


def growth(samples: list[tuple[int, Resources]]) -> float:
    """KiB of memory that 1,000 steps add from SETTLED on: the slope of a line."""
    settled = [(step, now.rss) for step, now in samples if step >= SETTLED]
    return 1000 * statistics.linear_regression(*zip(*settled, strict=True)).slope


def page(
    args: argparse.Namespace,
    samples: list[tuple[int, Resources]],
    seconds: float,
    outcome: Outcome,
    broken: list[str],
) -> str:
    """The text of SOAK.md."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    window = args.steps // 20
    early = at_step(samples, SETTLED, SETTLED + window)
    late = at_step(samples, args.steps - 2 * window, args.steps - window)
    names = ("memory, KiB", "open files", "threads")
    rows = zip(names, early, late, outcome.most, strict=True)
    command = shlex.join(["python", "benchmarks/soak.py", *sys.argv[1:]])
    total = outcome.counts.total()
    verdict = f"**Broken:** {'; '.join(broken)}." if broken else UNBROKEN
    return f"""# A soak

Made by `{command}`; do not edit.

A tiny model is trained for {args.steps:,} steps, with a save every 10 and an evaluation every 40:
once undisturbed, once with {total} signals at random moments and `--resume auto` after each end.

- machine: {os.cpu_count()} cores; load {os.getloadavg()[2]:.1f} over a quarter of an hour, so other
  work shared them
- python {sys.version.split()[0]}, jax {version("jax")}, orbax-checkpoint \
{version("orbax-checkpoint")}
- commit: {commit} (+ is a changed tree), {date.today()}

| of the process | step {SETTLED:,} | step {args.steps - window:,} | most, interrupted |
|---|---|---|---|
{table((name, *(f"{value:,}" for value in values)) for name, *values in rows)}

Memory is the median over {window} steps; files and threads are the fewest, since a save that is
under way has its own. From step {SETTLED} on, memory grew by {growth(samples) / 1024:.1f} MiB in
1,000 steps (the slope of a line), which are 100 saves and 25 evaluations. The undisturbed run took
{seconds:.0f} s; the interrupted one took {outcome.seconds:.0f} s, in {outcome.lives} starts.

| signal | {" | ".join(PLACES)} |
|---|{"---|" * len(PLACES)}
{table((name, *(str(outcome.counts[name, p]) for p in PLACES)) for name in SIGNALS)}

{verdict}
"""


def table(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--interruptions", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--keep", type=Path, help="an empty folder for the runs, to look at")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = args.keep or Path(name)
        whole, other = (prepare(folder / kind, args.steps) for kind in ("whole", "interrupted"))
        Life(prepare(folder / "first", 2)).wait()  # compiles
        samples, startup, seconds = undisturbed(whole)
        print(f"undisturbed: {seconds:.0f} s, {startup:.1f} s to start", file=sys.stderr)
        outcome = interrupted(other, plan(args.interruptions, args.steps, args.seed), startup)
        broken = outcome.broken + differences(whole.parent / "out", other.parent / "out")
    if args.steps > 2 * SETTLED:
        window = args.steps // 20
        early = at_step(samples, SETTLED, SETTLED + window)
        late = at_step(samples, args.steps - 2 * window, args.steps - window)
        if (
            growth(samples) > MOST_GROWTH
            or late.files > early.files + FEW
            or late.threads > early.threads + FEW
        ):
            broken.append(f"it grows: {early}, {late}")
        text = page(args, samples, seconds, outcome, broken)
        print(text, end="")
        if args.write:
            (ROOT / "benchmarks/SOAK.md").write_text(text)
    else:
        print("; ".join(broken) or f"{outcome.counts.total()} interruptions, the same bits")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
