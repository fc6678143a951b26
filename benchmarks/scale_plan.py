"""The scale plan: llm-train's real step for 1 B, 7 B and 70 B on many TPUs and GPUs, by mesh.

    python benchmarks/scale_plan.py --only '7b*/v5p-*'                 # some works
    python benchmarks/scale_plan.py                     # all that this environment compiles for
    python benchmarks/scale_plan.py --python .venv-cuda/bin/python --only '70b*'
    python benchmarks/scale_plan.py --list

Each work compiles in a process of its own, one after another, and adds a line to
benchmarks/scale_plan.jsonl. The last record of each work is its row in benchmarks/SCALE.md, which is
written anew from all records. Nothing is run, and no accelerator is needed: an hour or two on two
cores for the TPUs, minutes for the GPUs, at most 12 GB of memory.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from accelerators import commit, has_cuda
from ledger.plan import BY_NAME, PLAN
from ledger.works import Work

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks/scale_plan.jsonl"


def main() -> None:
    args = parse()
    if args.worker:
        from ledger.ours import compile_work

        print(json.dumps(compile_work(BY_NAME[args.worker], unrolled=False)))
        return
    for name in args.only:
        work = BY_NAME[name]
        print(f"{work.name} …", flush=True)
        record = record_of(work, args)
        with args.records.open("a") as file:
            print(json.dumps(record), file=file)
        print(str(record)[:500], flush=True)


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", action="append")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--timeout", type=float, default=3600)
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--worker")
    return parser.parse_args()


def record_of(work: Work, args) -> dict[str, Any]:
    import datetime

    record = {
        "work": work.name,
        "by": "ours",
        "unrolled": False,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }
    command = [args.python, __file__, "--worker", work.name]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=args.timeout
        )
    except subprocess.TimeoutExpired:
        return record | {"error": "timeout"}
    if done.returncode:
        return record | {"error": done.stderr[-2000:]}
    return record | json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
