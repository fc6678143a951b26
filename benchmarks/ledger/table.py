"""Records of compiled works to the page benchmarks/RESULTS.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ledger.works import PEER_WORKS, WORKS, Work

Record = dict[str, Any]
Key = tuple[str, str, bool]  # work, by whom, unrolled
KeyPath = tuple[str, ...]  # of a number in a record

GiB = 2**30
SHORT = {
    "all-gather": "gather",
    "all-reduce": "reduce",
    "reduce-scatter": "scatter",
    "all-to-all": "exchange",
    "collective-permute": "permute",
}
UNKNOWN = "–"

INTRODUCTION = """\
# The compiled step, by device

Made by `python benchmarks/accelerators.py`, which compiles llm-train's real step for devices that
are not here; do not edit. Nothing was run: these are facts of compiled programs, and seconds of
compiling on the machine below. All numbers are of one step on one device.
[docs/performance.md](../docs/performance.md) explains the columns.
"""
AGAIN = """\
- a row again: `python benchmarks/accelerators.py --only WORK`, with `--python
  .venv-cuda/bin/python` for a GPU, `--unrolled` or `--peer maxtext` for those tables"""
TPU_NOTE = """\
`bytes` is XLA's count of what the program reads and writes. XLA takes the body of a loop once, and
layers are a loop here, so it can be compared only within the table of unrolled programs.
"""
UNROLLED_NOTE = """\
Layers one after another instead of as one loop (`--unrolled`), so that `bytes` counts all of them.
The loop over the chunks of the loss stays, and counts once. What attention kernels read and write
inside counts in neither table.
"""
PEER_NOTE = """\
The same works in MaxText (`--peer maxtext`), compiled by its own ahead-of-time compilation: the
same shapes, float32 weights, bfloat16 matmuls, AdamW, splash attention, and the same recomputation
(`remat_policy` full, or minimal_with_context where matmul outputs are kept). Each ratio is ours to
MaxText's: below 1 is less. Its versions of jax and libtpu are newer than ours.
"""


def page(records: Iterable[Record]) -> str:
    """The whole page."""
    latest: dict[Key, Record] = {(r["work"], r["by"], r["unrolled"]): r for r in records}
    tpus = [work for work in WORKS if not work.is_gpu]
    gpus = [work for work in WORKS if work.is_gpu]
    unrolled = [work for work in WORKS if (work.name, "ours", True) in latest]
    parts = [
        INTRODUCTION,
        _header(latest.values()),
        "## TPU\n\n" + TPU_NOTE,
        table_of(TPU_COLUMNS, _rows(latest, tpus, False)),
        "## NVIDIA\n",
        table_of(GPU_COLUMNS, _rows(latest, gpus, False)),
    ]
    if unrolled:
        parts += ["## Unrolled\n\n" + UNROLLED_NOTE]
        parts += [table_of(TPU_COLUMNS, _rows(latest, unrolled, True))]
    if any(by == "maxtext" for _, by, _ in latest):
        parts += ["## Beside MaxText\n\n" + PEER_NOTE, _peers(latest)]
    failed = [r for r in latest.values() if "error" in r and r.get("fits") is None]
    if failed:
        said = [f"- `{r['work']}` ({r['by']}): {r['error'].splitlines()[-1][:300]}" for r in failed]
        parts += ["## Not compiled\n", "\n".join(said) + "\n"]
    return "\n".join(parts)


def line_of(record: Record) -> str:
    """A record as one line of text."""
    if "error" in record and record.get("fits") is None:
        return f"  failed: {record['error'].splitlines()[-1][:300]}"
    values = [(title, cell(record)) for title, cell in TPU_COLUMNS[2:]]
    return "  " + ", ".join(f"{title} {value}" for title, value in values if value != UNKNOWN)


def _header(records: Iterable[Record]) -> str:
    """Machine, versions, commits and dates, so that the numbers can be had again."""
    records = list(records)
    lines = [f"- machine: {machine()}, {os.cpu_count()} cores, {platform.system()}"]
    for by in ("ours", "maxtext"):
        sets = {tuple(r["versions"].items()) for r in records if r["by"] == by and "versions" in r}
        for found in sorted(sets):
            lines.append(f"- {by}: " + ", ".join(f"{name} {number}" for name, number in found))
    commits = sorted({r["commit"] for r in records if r["by"] == "ours"})
    dates = sorted({r["date"] for r in records})
    if records:
        lines.append(f"- commit: {', '.join(commits)} (+ is a changed tree)")
        lines.append(f"- date: {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}")
    lines.append(AGAIN)
    return "\n".join(lines) + "\n"


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _rows(latest: dict[Key, Record], works: Sequence[Work], unrolled: bool) -> list[Record]:
    missing = {"error": "not compiled yet"}
    return [
        latest.get((work.name, "ours", unrolled), {"work": work.name, **missing}) for work in works
    ]


def table_of(columns: Sequence[tuple[str, Callable[[Record], str]]], rows: Sequence[Record]) -> str:
    lines = ["| " + " | ".join(title for title, _ in columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        lines.append("| " + " | ".join(cell(row) for _, cell in columns) + " |")
    return "\n".join(lines) + "\n"


def _of_program(field: str, show: Callable[[Any], str]) -> Callable[[Record], str]:
    def cell(record: Record) -> str:
        value = (record.get("program") or {}).get(field)
        return UNKNOWN if value is None else show(value)

    return cell


def _gib(number: float) -> str:
    return f"{number / GiB:.2f} GiB"


def seconds(record: Record) -> str:
    if "compile_seconds" not in record:
        return "not yet" if record["error"] == "not compiled yet" else "failed"
    cpu = record.get("compile_cpu_seconds")
    return f"{record['compile_seconds']:.0f} s" + ("" if cpu is None else f", {cpu:.0f} s CPU")


def fits(record: Record) -> str:
    limit = record.get("limit")
    if limit is None:
        return UNKNOWN
    needed = UNKNOWN if record["needed"] is None else f"{record['needed'] / GiB:.1f}"
    return f"{'yes' if record['fits'] else '**no**'}: {needed} of {limit / GiB:.1f}"


def _kernels(record: Record) -> str:
    costs = record.get("costs")
    return f"{costs['fusions']:,} + {costs['custom_calls']:,}" if costs else UNKNOWN


def _matmuls(record: Record) -> str:
    costs = record.get("costs")
    if not costs:
        return UNKNOWN
    whole = costs["matmul_flops"] + costs["other_flops"]
    share = costs["matmul_flops"] / max(whole, 1)
    return f"{costs['matmul_flops'] / 1e12:.2f} T, {100 * share:.1f} %"


def _collectives(found: dict[str, dict[str, int]]) -> str:
    if not found:
        return "none"
    return ", ".join(
        f"{SHORT[kind]} {c['count']:,} ({c['bytes'] / 1e9:.2f} GB)" for kind, c in found.items()
    )


def _attention(record: Record) -> str:
    program = record.get("program")
    if not program:
        return UNKNOWN
    calls = program["attention_calls"]
    return f"{program['attention']} × {calls}" if calls else program["attention"]


BYTES = ("bytes", _of_program("bytes_accessed", lambda value: f"{value / 1e9:.1f} GB"))
GPU_COLUMNS: list[tuple[str, Callable[[Record], str]]] = [
    ("work", lambda record: record["work"]),
    ("compile", seconds),
    ("arguments", _of_program("arguments", _gib)),
    ("temporaries", _of_program("temporaries", _gib)),
    ("fits (GiB)", fits),
    ("kernels", _kernels),
    ("matmul FLOPs, share", _matmuls),
    ("collectives", _of_program("collectives", _collectives)),
    ("attention", _attention),
]
TPU_COLUMNS = [*GPU_COLUMNS[:5], BYTES, *GPU_COLUMNS[5:]]


BYTES_ACCESSED = ("program", "bytes_accessed")
COMPARED: list[tuple[str, KeyPath, str, float]] = [  # title, number, how it is shown, its unit
    ("compile", ("compile_seconds",), "{:.0f} s", 1),
    ("CPU of it", ("compile_cpu_seconds",), "{:.0f} s", 1),
    ("temporaries", ("program", "temporaries"), "{:.2f} GiB", GiB),
    ("bytes", BYTES_ACCESSED, "{:.1f} GB", 1e9),
    ("matmul FLOPs", ("costs", "matmul_flops"), "{:.2f} T", 1e12),
]


def _peers(latest: dict[Key, Record]) -> str:
    """Two rows a work, scanned and unrolled."""
    titles = [f"{title} | " for title, *_ in COMPARED]
    lines = ["| work | layers | " + " | ".join(titles) + " |", "|---|---" * (1 + len(titles)) + "|"]
    for work in PEER_WORKS:
        for unrolled in (False, True):
            ours = latest.get((work.name, "ours", unrolled), {})
            theirs = latest.get((work.name, "maxtext", unrolled), {})
            if not theirs:
                continue
            cells = [
                _beside(ours, theirs, path, form, unit)
                if unrolled or path != BYTES_ACCESSED
                else f"{UNKNOWN} | {UNKNOWN}"
                for _, path, form, unit in COMPARED
            ]
            layers = "unrolled" if unrolled else "as one loop"
            lines.append(f"| {work.name} | {layers} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _beside(ours: Record, theirs: Record, path: KeyPath, form: str, unit: float) -> str:
    """`ours / theirs | ratio`."""
    left, right = _at(ours, path), _at(theirs, path)
    shown = [UNKNOWN if value is None else form.format(value / unit) for value in (left, right)]
    ratio = UNKNOWN if left is None or not right else f"**{left / right:.2f}**"
    return f"{shown[0]} / {shown[1]} | {ratio}"


def _at(record: Record, path: KeyPath) -> float | None:
    found: Any = record
    for key in path:
        found = (found or {}).get(key)
    return found
