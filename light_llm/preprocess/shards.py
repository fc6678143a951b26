"""Shards: parquet files of tokenized documents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ROW_GROUP_DOCUMENTS = 1024
ROW_GROUP_TOKENS = 2_000_000


def schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        {
            "source": pa.string(),
            "length": pa.int64(),
            "text": pa.string(),
            "tokens": pa.list_(pa.int32()),
        }
    )


class ShardWriter:
    """Writes documents to folder/shard_00000.parquet, shard_00001.parquet, …

    A shard holds at most `shard_size` tokens, or one document that is longer. Equal documents in
    equal order give equal bytes. Use as a context manager: it completes the last shard.
    """

    def __init__(self, folder: Path, shard_size: int):
        self.folder = folder
        self.shard_size = shard_size
        self.files: list[Path] = []
        self.documents = self.characters = self.tokens = 0
        self._rows: list[tuple[str, int, str, list[int]]] = []
        self._row_tokens = self._shard_tokens = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, source: str, text: str, tokens: list[int]) -> None:
        if self._shard_tokens and self._shard_tokens + len(tokens) > self.shard_size:
            self._close_shard()
        self._rows.append((source, len(tokens), text, tokens))
        self._row_tokens += len(tokens)
        self._shard_tokens += len(tokens)
        self.documents += 1
        self.characters += len(text)
        self.tokens += len(tokens)
        if len(self._rows) >= ROW_GROUP_DOCUMENTS or self._row_tokens >= ROW_GROUP_TOKENS:
            self._write_row_group()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            self._close_shard()
        elif self._writer is not None:
            self._writer.close()

    def _write_row_group(self) -> None:
        import pyarrow as pa

        columns = [
            pa.array(column, field.type)
            for column, field in zip(zip(*self._rows, strict=True), schema(), strict=True)
        ]
        if self._writer is None:
            self._writer = self._open_shard()
        self._writer.write_table(pa.Table.from_arrays(columns, schema=schema()))
        self._rows, self._row_tokens = [], 0

    def _open_shard(self) -> pq.ParquetWriter:
        import pyarrow.parquet as pq

        self.folder.mkdir(exist_ok=True)
        self.files.append(self.folder / f"shard_{len(self.files):05d}.parquet")
        return pq.ParquetWriter(
            self.files[-1],
            schema(),
            compression="zstd",
            use_dictionary=["source", "tokens.list.element"],
            write_statistics=True,
            write_page_checksum=True,
        )

    def _close_shard(self) -> None:
        if self._rows:
            self._write_row_group()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._shard_tokens = 0
