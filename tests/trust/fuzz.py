"""Mutated files of every kind that a command reads, each to a command that reads it.

    python tests/trust/fuzz.py --cases 3000 --seed 1 --processes 2
    python tests/trust/fuzz.py --seed 1 --case 17       # one again; its folder is kept

Each case copies a small base, does one thing to one file (fuzz_mutations.py) and runs a command
in a sandbox folder. Allowed: exit code 0 or 2 (1 of llm-parity and 3 of a replay too), a short
message without control characters, no traceback, no hang, bounded memory, nothing changed outside
of what the command was told to write, and no result that silently differs: a checkpoint whose
files are not those recorded is never used, and a run that is continued writes the shards that an
uninterrupted one writes.

Processes are forks of one that has imported everything; compiled steps are shared.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import importlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import fuzz_base
from fuzz_case import Limits
from fuzz_check import Result, run_case
from fuzz_targets import MAINS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("jax", "torch", "transformers", "pyarrow.parquet", "tokenizers", "safetensors.torch")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument(
        "--case", type=int, nargs="+", help="run these again and keep their folders"
    )
    parser.add_argument("--only", default="", help="cases whose kind or command holds this text")
    parser.add_argument("--seconds", type=float, default=40, help="after which a case hangs")
    parser.add_argument("--mebibytes", type=int, default=1500, help="memory of a case")
    parser.add_argument("--work", type=Path, help="where the base is made, or is already")
    parser.add_argument("--json", type=Path, help="write the results of all cases there")
    parser.add_argument("--project", type=Path, default=ROOT, help="whose commands are run")
    return parser.parse_args()


def imports(project: Path, work: Path) -> None:
    """Everything heavy, with no backend of JAX initialised; compiled steps go to `work`."""
    sys.path[:0] = [str(project)]
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(work / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "HF_HOME": str(work / "hub"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    listed = work / "modules"
    later = listed.read_text().split() if listed.exists() else []
    for name in (*HEAVY, *MAINS.values(), *later):
        with contextlib.suppress(Exception):  # some can only be imported by their parent
            importlib.import_module(name)
    import light_llm

    assert Path(light_llm.__file__).is_relative_to(project), light_llm.__file__


def work_off(args: argparse.Namespace, limits: Limits) -> Iterator[Result]:
    """The cases, each process taking every n-th; results as they come."""
    numbers = args.case or range(args.first, args.first + args.cases)

    def work(number: int) -> dict[str, Any] | None:
        result = run_case(args.work, args.seed, number, args.only, limits)
        if result is not None and not args.case:
            shutil.rmtree(args.work / str(number), ignore_errors=True)
        return None if result is None else asdict(result)

    results = fuzz_base.spread(numbers, args.processes, work, lambda process: None)
    yield from (Result(**result) for result in results)


def cause(failure: str) -> str:
    """A failure without what differs from case to case."""
    return re.sub(r"[0-9][0-9,.]*", "N", failure)[:150]


def summary(results: list[Result], args: argparse.Namespace, seconds: float) -> Iterator[str]:
    """What can stand in a page, line by line."""
    failed = [result for result in results if result.failures]
    yield f"python tests/trust/fuzz.py --cases {args.cases} --seed {args.seed}"
    packages = ("jax", "torch", "pyarrow", "tokenizers", "transformers", "safetensors")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    yield f"python {platform.python_version()}, {versions}"
    codes = collections.Counter(result.code for result in results)
    yield (
        f"{len(results):,} cases in {seconds:,.0f} s on {args.processes} processes; exit codes "
        + ", ".join(f"{code}: {count:,}" for code, count in sorted(codes.items()))
        + f"; {len(failed):,} failed"
    )
    longest = max(results, key=lambda result: result.seconds)
    largest = max(results, key=lambda result: result.mebibytes)
    yield (
        f"longest {longest.seconds:.1f} s (case {longest.number}), most memory "
        f"{largest.mebibytes:,} MiB (case {largest.number})"
    )
    for title in ("kind", "command", "way"):
        count = collections.Counter(getattr(result, title) for result in results)
        bad = collections.Counter(getattr(result, title) for result in failed)
        yield f"{title:26}{'cases':>7}{'failed':>8}"
        for name, number in sorted(count.items()):
            yield f"  {name:24}{number:7,}{bad[name]:8,}"


def tell(results: list[Result], args: argparse.Namespace, seconds: float) -> None:
    """The failures by their cause, then the summary."""
    causes = collections.defaultdict(list)
    for result in results:
        for failure in result.failures:
            causes[f"{result.kind}; {result.command}: {cause(failure)}"].append(result.number)
    for name, numbers in sorted(causes.items(), key=lambda item: -len(item[1])):
        print(f"{len(numbers):5}  {name}  (case {numbers[0]})")
    print("\n".join(summary(results, args, seconds)))


def prepare(args: argparse.Namespace) -> None:
    """The imports, and the base where it is not there yet."""
    start = time.monotonic()
    args.work.mkdir(parents=True, exist_ok=True)
    imports(args.project.resolve(), args.work)
    if not (args.work / "base").exists():
        fuzz_base.in_fork(lambda: fuzz_base.build(args.work))
        imports(args.project.resolve(), args.work)  # now with all that its commands import
    gc.collect()
    gc.freeze()  # so that the forks, which collect at their end, have little to look through
    print(f"the base is in {args.work}, after {time.monotonic() - start:.0f} s", flush=True)


def main() -> None:
    args = arguments()
    made = args.work is None
    if made:
        fast = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
        args.work = tempfile.mkdtemp(prefix="fuzz-", dir=fast)
    args.work = Path(args.work).resolve()
    limits = Limits(args.seconds, mebibytes=args.mebibytes)
    prepare(args)
    start, results = time.monotonic(), []
    for result in work_off(args, limits):
        results.append(result)
        if result.failures or args.case:
            print(f"case {result.number} ({result.kind}, exit {result.code}): {result.recipe}")
            print("    " + "; ".join(result.failures or ["held"]), flush=True)
        if args.case:
            print(f"{result.stderr}\nits folder: {args.work / str(result.number)}\n", flush=True)
        if len(results) % 100 == 0:
            print(f"{len(results)} cases in {time.monotonic() - start:.0f} s", flush=True)
    if results:
        tell(results, args, time.monotonic() - start)
    if args.json:
        args.json.write_text("".join(json.dumps(asdict(result)) + "\n" for result in results))
    if made and not args.case:
        shutil.rmtree(args.work)
    raise SystemExit(any(result.failures for result in results))


if __name__ == "__main__":
    main()
