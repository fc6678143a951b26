"""The ledger: llm-train's real step compiled for TPUs and GPUs that are not here.

    python benchmarks/accelerators.py --only 'medium*/v5e-1' [--unrolled]    # some works
    python benchmarks/accelerators.py                       # all that this environment compiles for
    python benchmarks/accelerators.py --python .venv-cuda/bin/python --only '*/h100-*'
    python benchmarks/accelerators.py --peer maxtext        # the same works in MaxText
    python benchmarks/accelerators.py --list

Each work compiles in a process of its own, one after another, and adds a line to
build/accelerators/records.jsonl. The last record of each work is its row in benchmarks/RESULTS.md,
which is written anew from all records. Nothing is run and no accelerator is needed.
docs/performance.md says how to read the table.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ledger import maxtext, table
from ledger.works import BY_NAME, PEER_WORKS, WORKS, Work

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/RESULTS.md"
RECORDS = ROOT / "build/accelerators/records.jsonl"
OURS, MAXTEXT = "ours", "maxtext"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="a name or pattern")
    parser.add_argument("--unrolled", action="store_true", help="layers not as one loop")
    parser.add_argument("--python", default=sys.executable, help="compiles; for GPUs .venv-cuda's")
    parser.add_argument("--peer", choices=[MAXTEXT], help="compile its step instead of ours")
    parser.add_argument("--peer-folder", type=Path, default=ROOT / ".venv-maxtext")
    parser.add_argument("--peer-python", default="python3.12", help="makes the peer's environment")
    parser.add_argument("--timeout", type=float, default=2400, help="seconds a work")
    parser.add_argument("--records", type=Path, default=RECORDS, help="the file of JSON lines")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the page to write")
    parser.add_argument("--list", action="store_true", help="the names, and no more")
    parser.add_argument("--table", action="store_true", help="write the page, compile nothing")
    parser.add_argument("--worker", metavar="NAME", help=argparse.SUPPRESS)
    return parser.parse_args()


def chosen(args: argparse.Namespace) -> list[Work]:
    """The works that were asked for, of those that the environment compiles."""
    works = list(PEER_WORKS)
    if not args.peer:
        works = [work for work in WORKS if work.is_gpu == has_cuda(args.python)]
    patterns = args.only or ["*"]
    found = [work for work in works if any(fnmatch.fnmatch(work.name, p) for p in patterns)]
    if not found:
        sys.exit(f"no work of this environment is named {' or '.join(patterns)}; see --list")
    return found


def has_cuda(python: str) -> bool:
    """Whether that environment compiles for GPUs."""
    code = "import importlib.util as u, sys; sys.exit(u.find_spec('jax_plugins') is None)"
    return subprocess.run([python, "-c", code]).returncode == 0


def record_of(work: Work, args: argparse.Namespace, script: str = __file__) -> dict[str, Any]:
    """Compile a work, in another process; what failed is a record too.

    Args:
        script: run with `--worker NAME`, it prints the record.
    """
    record: dict[str, Any] = {
        "work": work.name,
        "by": args.peer or OURS,
        "unrolled": args.unrolled,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }
    try:
        if args.peer:
            python = maxtext.make_environment(args.peer_folder, args.peer_python)
            return record | maxtext.compile_work(python, work, args.unrolled, args.timeout)
        return record | in_worker(work, args, script)
    except subprocess.TimeoutExpired:
        return record | {"error": f"not compiled after {args.timeout:.0f} s"}
    except RuntimeError as error:
        return record | {"error": str(error)}


def in_worker(work: Work, args: argparse.Namespace, script: str) -> dict[str, Any]:
    """
    Raises:
        RuntimeError: the process failed; its last words.
    """
    command = [args.python, script, "--worker", work.name]
    command += ["--unrolled"] if args.unrolled else []
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=args.timeout
    )
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip() or f"exit code {done.returncode}")[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def commit() -> str:
    """Of the tree that is compiled, with `+` where files differ from it."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True).stdout

    changed = git("status", "--porcelain", "--", "light_jax", "light_llm", "configs")
    return git("rev-parse", "--short", "HEAD").strip() + ("+" if changed else "")


def main() -> None:
    args = parse()
    if args.worker:
        from ledger.ours import compile_work

        print(json.dumps(compile_work(BY_NAME[args.worker], args.unrolled)))
        return
    if args.list:
        print(*(work.name for work in (PEER_WORKS if args.peer else WORKS)), sep="\n")
        return
    args.records.parent.mkdir(parents=True, exist_ok=True)
    for work in [] if args.table else chosen(args):
        print(f"{work.name} …", flush=True)
        record = record_of(work, args)
        with args.records.open("a") as file:
            print(json.dumps(record), file=file)
        print(table.line_of(record), flush=True)
    lines = args.records.read_text().splitlines() if args.records.exists() else []
    args.results.write_text(table.page([json.loads(line) for line in lines]))
    print(f"wrote {args.results}")


if __name__ == "__main__":
    main()
