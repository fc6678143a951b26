"""A corpus with files of each kind, and the shards that it gives, from a disk or from a store."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from light_llm.files import fetched, remote, remotefile
from light_llm.preprocess import PreprocessConfig, preprocess

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


def text(number: int, words: int = 40) -> str:
    return " ".join(WORDS[(number * k) % 10] + str(number + k) for k in range(1, words))


def lines(first: int, number: int = 30) -> bytes:
    return b"".join(json.dumps({"text": text(first + n)}).encode() + b"\n" for n in range(number))


def make_corpus(root: Path) -> Path:
    """Files of each kind, in folders, and some that are not read."""
    pictures = b"\x89PNG\r\n\0\0" + bytes(100)
    tables = "id,text\r\n" + "".join(f'{n},"{text(n)}"\r\n' for n in range(400, 430))
    arrays = json.dumps([{"text": text(n)} for n in range(500, 520)])
    for name, content in {
        "a/lines.jsonl": lines(0),
        "a/lines.jsonl.gz": gzip.compress(lines(100)),
        "a/lines.jsonl.xz": lzma.compress(lines(200)),
        "a-b/lines.jsonl.bz2": bz2.compress(lines(300)),
        "table.csv": tables.encode(),
        "array.json": arrays.encode(),
        "long.txt": "\n".join(text(n) for n in range(600, 640)).encode(),
        "picture.png": pictures,
        "empty.txt": b"",
        ".hidden/x.txt": b"hidden",
        "a/.hidden.txt": b"hidden",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    with pa.output_stream(root / "long.txt.zst", compression="zstd") as stream:
        stream.write("\n".join(text(n) for n in range(700, 740)).encode())
    rows = pa.table({"id": range(200), "text": [text(n) for n in range(800, 1000)]})
    pq.write_table(rows, root / "rows.parquet", row_group_size=50, compression="none")
    return root


def forget() -> None:
    """Be as a process that has just begun."""
    remotefile._blocks.clear()
    remotefile._without_ranges.clear()
    fetched._versions.clear()
    remote.filesystem.cache_clear()


def shards(output: Path) -> dict[str, pq.ParquetFile]:
    return {str(path.relative_to(output)): path for path in sorted(output.rglob("*.parquet"))}


def assert_same_shards(ours: Path, theirs: Path, url: str, folder: Path) -> None:
    """Equal in all but the column `source`, which names the same files by URL and by path."""
    assert shards(ours).keys() == shards(theirs).keys()
    for one, other in zip(shards(ours).values(), shards(theirs).values(), strict=True):
        mine, files = pq.ParquetFile(one), pq.ParquetFile(other)
        assert mine.metadata.num_row_groups == files.metadata.num_row_groups
        table = mine.read()
        sources = [source.replace(url, f"{folder}/") for source in table["source"].to_pylist()]
        assert table.set_column(0, "source", pa.array(sources)).equals(files.read())


def run(output: Path, *inputs: object, **more: object) -> Path:
    config = {"tokenizer": "char", "workers": 1, "val_fraction": 0.1, "shard_size": 20_000}
    forget()
    preprocess(PreprocessConfig(input=inputs, output=output, **(config | more)))  # type: ignore[arg-type]
    return output
