"""Files that no mutation of bytes finds: well formed, and of content that nobody expects."""

from __future__ import annotations

import gzip
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch


def write_variants(folder: Path, given: Path) -> None:
    """Files of folder/KIND/ that no mutation of bytes finds: whole, and of another content."""
    for kind in ("gzip", "parquet of text", "shard", ".state.pt", "JSON lines"):
        (folder / kind).mkdir(parents=True)
    with gzip.open(folder / "gzip/one line of 600 MB", "wb", compresslevel=1) as file:
        file.write(b'{"text": "')
        for _ in range(600):
            file.write(b"a" * 1_000_000)
    with gzip.open(folder / "gzip/a deep line", "wt") as file:
        file.write('{"text":' + "[" * 100_000 + "\n")
    twice = gzip.compress(b'{"text": "one"}\n') * 2 + b"trailing"
    (folder / "gzip/members and rubbish").write_bytes(twice)
    (folder / "JSON lines/a key of escapes").write_text('{"\\u001b[2J\\u0007": "x"}\n')
    (folder / "JSON lines/half a surrogate").write_text(
        '{"text": "\\ud800 and \\u0000 more"}\n' * 9
    )
    escaped = {"\x1b[2J\x07": ["a"], "\u202etext": ["b"]}
    texts = {
        "escapes in columns": escaped,
        "numbers": {"text": [1, 2]},
        "lists": {"text": [["a"], ["b"]]},
        "nulls": {"text": pa.array([None, None], pa.string())},
        "binary": {"text": pa.array([b"\xff\xfe"], pa.binary())},
        "no rows": {"text": pa.array([], pa.string())},
        "no columns": {},
        "3000 columns": {f"c{number}": ["a"] for number in range(3000)},
        "escapes in text": {"text": ["\x1b[2J\x00" * 9, "\u202e"] * 20},
        "one text of 200 MB": {"text": ["a " * 100_000_000]},
    }
    for name, columns in texts.items():
        write_parquet(folder / "parquet of text" / name, columns)
    _write_shards(folder / "shard", given)
    _write_torch(folder / ".state.pt", given / "torch/final.state.pt")


def _write_shards(folder: Path, given: Path) -> None:
    table = pq.read_table(next(given.glob("data/train/*.parquet")))
    names, rows = table.column_names, table.num_rows
    lists = next(name for name in names if pa.types.is_list(table.schema.field(name).type))
    rest = {name: table[name] for name in names if name != lists}
    kind = pa.int32()
    for name, ids in {
        "negative": pa.array([[-1, 2]] * rows, pa.list_(kind)),
        "beyond": pa.array([[2**31 - 1, 300]] * rows, pa.list_(kind)),
        "int64": pa.array([[2**40]] * rows, pa.list_(pa.int64())),
        "floats": pa.array([[1.5]] * rows, pa.list_(pa.float32())),
        "texts": pa.array([["a"]] * rows, pa.list_(pa.string())),
        "no list": pa.array([1] * rows, kind),
        "nulls": pa.array([None] * rows, pa.list_(kind)),
        "null inside": pa.array([[None, 1]] * rows, pa.list_(kind)),
        "empty": pa.array([[]] * rows, pa.list_(kind)),
        "lists of lists": pa.array([[[1]]] * rows, pa.list_(pa.list_(kind))),
        "fixed": pa.array([[1, 2]] * rows, pa.list_(kind, 2)),
        "large": pa.array([[1, 2]] * rows, pa.large_list(pa.uint16())),
    }.items():
        write_parquet(folder / name, {lists: ids} | rest)
    longer = {name: table[name].slice(0, 1) for name in rest}
    ids = pa.ListArray.from_arrays(
        pa.array([0, 60_000_000], pa.int32()),
        pa.Array.from_buffers(kind, 60_000_000, [None, pa.py_buffer(bytes(240_000_000))]),
    )
    write_parquet(folder / "60 M tokens in a small file", {lists: ids} | longer)
    write_parquet(folder / "escapes in columns", {"\x1b[2J": table[lists], "\u202ex": table[lists]})
    write_parquet(folder / "no rows", {name: table[name].slice(0, 0) for name in names})
    write_parquet(folder / "another column", {"x" * 60_000: table[lists]} | rest)
    write_parquet(
        folder / "groups of one row", dict(zip(names, table.columns, strict=True)), row_group_size=1
    )
    for name in rest:
        for what, value in {"-1": -1, "0": 0, "huge": 2**31 - 1}.items():
            try:
                wrong = pa.array([value] * rows, table.schema.field(name).type)
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                continue
            write_parquet(folder / f"{name} {what}", {lists: table[lists]} | rest | {name: wrong})


class _Touch:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ../outside/owned",)


def _write_torch(folder: Path, path: Path) -> None:
    torch.save(_Touch(), folder / "a program, zipped")
    (folder / "a program").write_bytes(pickle.dumps(_Touch()))
    (folder / "numbers").write_bytes(pickle.dumps({"step": 1}))
    values = (None, -1, 10**18, 1e308, float("nan"), "x\x1b[2J", [], {}, torch.zeros(0))
    values += (torch.full((3, 3), float("nan")), torch.zeros(2, dtype=torch.complex64), True)
    rng = random.Random(0)
    for number in range(40):
        state = torch.load(path, weights_only=True)
        holder, key, place = state, rng.choice(sorted(state)), ""
        while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.85:
            holder = holder[key]
            key = rng.choice(list(holder)) if isinstance(holder, dict) else 0
            place += f" {key}"
        holder[key] = rng.choice(values)
        torch.save(state, folder / f"{number}{place} = {str(holder[key])[:20]!a}".replace("/", "|"))
    torch.save({"step": torch.zeros(1).expand(10**9)}, folder / "an expanded tensor")


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> None:
    pq.write_table(pa.table(columns), path, **options)
