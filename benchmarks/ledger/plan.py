"""The scale plan: 1 B, 7 B and 70 B parameters on many devices, by mesh; its part of the docs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ledger.table import GiB, fits, machine, table_of
from ledger.works import Work

Record = dict[str, Any]
UNKNOWN = "–"

# A batch is one sequence for each device of data · fsdp, four of the smallest model's.
PLAN: tuple[Work, ...] = (
    Work("1.2b", "h100-8", 32, True),
    Work("1.2b", "h100-8", 32, True, fsdp=8),
    Work("1.2b", "h100-64", 256, True),
    Work("1.2b", "h100-64", 256, True, fsdp=8),
    Work("7b", "h100-8", 8, True, fsdp=8),
    Work("7b", "h100-64", 64, True, fsdp=8),
    Work("7b", "h100-64", 64, True, fsdp=64),
    Work("7b", "h100-64", 32, True, fsdp=32, tensor=2),
    Work("70b", "h100-64", 64, True, fsdp=64),
    Work("70b", "h100-64", 8, True, fsdp=8, tensor=8),
    Work("70b", "h100-64", 8, True, fsdp=8, tensor=8, seq_len=32768),
    Work("1.2b", "v5p-16", 32, True),
    Work("1.2b", "v5p-128", 256, True, fsdp=8),
    Work("7b", "v5p-16", 8, True, fsdp=8),
    Work("7b", "v5p-128", 64, True, fsdp=16),
    Work("7b", "v5p-128", 64, True, fsdp=64),
    Work("70b", "v5p-128", 64, True, fsdp=64),
    Work("70b", "v5p-512", 256, True, fsdp=16),
    Work("70b", "v5p-512", 256, True, fsdp=256),
    Work("70b", "v5p-512", 64, True, fsdp=64, tensor=4),
    Work("70b", "v5p-512", 64, True, fsdp=64, tensor=4, seq_len=32768),
)
STATE: tuple[Work, ...] = tuple(
    Work("1.2b", "h100-8", 32, True, fsdp=fsdp, tensor=tensor)
    for fsdp, tensor in ((1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 4), (2, 2), (4, 2), (2, 4))
)
"""What a device holds of weights and optimizer state, by mesh."""

BY_NAME = {work.name: work for work in (*PLAN, *STATE)}


def tables(records: Iterable[Record]) -> str:
    """The part of docs/scale.md that the records make: a row for each work that has one."""
    latest = {record["work"]: record for record in records}

    def rows(works: Sequence[Work]) -> list[Record]:
        return [latest[work.name] for work in works if work.name in latest]

    return "\n".join(
        [_header(latest.values()), table_of(PLAN_COLUMNS, rows(PLAN)), _state(rows(STATE))]
    )


def _header(records: Iterable[Record]) -> str:
    versions = sorted({f"{k} {v}" for r in records for k, v in r.get("versions", {}).items()})
    commits = sorted({record["commit"] for record in records})
    dates = sorted({record["date"] for record in records})
    return (
        f"Compiled on {machine()}, {os.cpu_count()} cores; {', '.join(versions)}; commit "
        f"{', '.join(commits)}; {' to '.join(dict.fromkeys([*dates[:1], *dates[-1:]]))}.\n"
    )


def _mesh(record: Record) -> str:
    work = BY_NAME[record["work"]]
    data = work.devices // (work.fsdp * work.tensor)
    sizes = {"data": data, "fsdp": work.fsdp, "tensor": work.tensor}
    return " · ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)


def _model(record: Record) -> str:
    return BY_NAME[record["work"]].model.upper().replace("B", " B")


def _devices(record: Record) -> str:
    work = BY_NAME[record["work"]]
    family = work.target.rpartition("-")[0]
    return f"{work.devices} × {family if family.startswith('v') else family.upper()}"


def _batch(record: Record) -> str:
    cfg = BY_NAME[record["work"]].config()
    return f"{cfg.batch_size} × {cfg.seq_len:,}"


def _of_program(show: Callable[[Record], str]) -> Callable[[Record], str]:
    return lambda record: show(record) if record.get("program") else UNKNOWN


def _exchanged(record: Record) -> str:
    found = record["program"]["collectives"].values()
    return f"{sum(each['bytes'] for each in found) / 1e9:.1f} GB"


def layer_bytes(work: Work) -> int:
    """A layer's kernels in 16 bits on one device, gathered along fsdp."""
    model = work.config().model
    attention = model.attention
    heads = 2 * attention.num_heads + 2 * attention.num_kv_heads
    kernels = model.d_model * (heads * attention.head_dim + 3 * model.ffn_dim)
    return 2 * kernels // work.tensor


def _gathered(record: Record) -> str:
    found = record.get("gathered")
    if found is None:
        return UNKNOWN
    if found["alive"] == 0:
        return "none"
    layers = found["alive"] / layer_bytes(BY_NAME[record["work"]])
    return f"{found['alive'] / GiB:.2f} GiB, {layers:.1f} layers"


def _compiled(record: Record) -> str:
    seconds = record.get("compile_cpu_seconds")
    return "failed" if seconds is None else f"{seconds:.0f} s"


PLAN_COLUMNS: list[tuple[str, Callable[[Record], str]]] = [
    ("parameters", _model),
    ("devices", _devices),
    ("mesh", _mesh),
    ("batch", _batch),
    ("state", _of_program(lambda r: f"{r['program']['arguments'] / GiB:.2f} GiB")),
    ("fits (GiB)", fits),
    ("gathered at once", _gathered),
    (
        "arithmetic",
        lambda r: f"{r['model_flops'] / 1e12:,.0f} T" if "model_flops" in r else UNKNOWN,
    ),
    ("exchanged", _of_program(_exchanged)),
    ("compile", _compiled),
]


def _state(rows: Sequence[Record]) -> str:
    """Arguments by mesh, and how they fall."""
    held = {r["work"]: r["program"]["arguments"] for r in rows if r.get("program")}
    whole = held.get(STATE[0].name)

    def share(record: Record) -> str:
        return UNKNOWN if whole is None else f"1/{whole / held[record['work']]:.2f}"

    return table_of(
        [
            ("mesh", _mesh),
            ("state", _of_program(lambda r: f"{r['program']['arguments'] / GiB:.3f} GiB")),
            ("of one device's", _of_program(share)),
        ],
        rows,
    )
