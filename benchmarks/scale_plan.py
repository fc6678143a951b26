"""The scale plan: llm-train's real step for 1 B, 7 B and 70 B on many TPUs and GPUs, by mesh.

    python benchmarks/scale_plan.py --only '7b*/v5p-*'                 # some works
    python benchmarks/scale_plan.py                     # all that this environment compiles for
    python benchmarks/scale_plan.py --python .venv-cuda/bin/python --only '70b*'
    python benchmarks/scale_plan.py --list

Each work compiles in a process of its own, one after another, and adds a line to
benchmarks/scale_plan.jsonl. From the last record of each work the tables of docs/scale.md are
written anew. Nothing is run, and no accelerator is needed: two cores take minutes for the GPUs,
an hour or two for the TPUs.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from pathlib import Path

import accelerators
from ledger import plan, table
from ledger.works import Work

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks/scale_plan.jsonl"
PAGE = ROOT / "docs/scale.md"
BEGIN, END = "<!-- benchmarks/scale_plan.py writes from here -->", "<!-- to here -->"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="a name or pattern")
    parser.add_argument("--python", default=sys.executable, help="compiles; for GPUs .venv-cuda's")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds a work")
    parser.add_argument("--records", type=Path, default=RECORDS, help="the file of JSON lines")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page with the tables")
    parser.add_argument("--list", action="store_true", help="the names, and no more")
    parser.add_argument("--table", action="store_true", help="write the page, compile nothing")
    parser.add_argument("--worker", metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.peer, args.unrolled = None, False  # what accelerators.py has besides
    return args


def chosen(args: argparse.Namespace) -> list[Work]:
    """The works that were asked for, of those that the environment compiles."""
    is_gpu = accelerators.has_cuda(args.python)
    works = [work for work in plan.BY_NAME.values() if work.is_gpu == is_gpu]
    patterns = args.only or ["*"]
    found = [work for work in works if any(fnmatch.fnmatch(work.name, p) for p in patterns)]
    if not found:
        sys.exit(f"no work of this environment is named {' or '.join(patterns)}; see --list")
    return found


def write_page(page: Path, records: Path) -> None:
    """The tables between the two marks of the page, from the records."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = records.read_text().splitlines()
    tables = plan.tables([json.loads(line) for line in lines])
    page.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{after}")


def main() -> None:
    args = parse()
    if args.worker:
        from ledger.ours import compile_work

        print(json.dumps(compile_work(plan.BY_NAME[args.worker], unrolled=False)))
        return
    if args.list:
        print(*plan.BY_NAME, sep="\n")
        return
    for work in [] if args.table else chosen(args):
        print(f"{work.name} …", flush=True)
        record = accelerators.record_of(work, args, script=__file__)
        with args.records.open("a") as file:
            print(json.dumps(record), file=file)
        print(table.line_of(record), flush=True)
    write_page(args.page, args.records)
    print(f"wrote {args.page}")


if __name__ == "__main__":
    main()
