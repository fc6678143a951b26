"""Shards -> how many tokens each row group holds, read from the footers where these prove it.

A leaf column's `num_values - null_count` counts its tokens if null_count includes the slot that an
empty list takes. The writers named below do include it, which matters where a list is empty. The
column `length`, where there is one, must agree with the footer. A row group whose count neither
proves is decoded. Of a remote shard only the footer is read, if it proves all counts by itself.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from light_jax.data.footer import UNREADABLE, Footer, read_footer
from light_jax.data.rowgroup import decode, first_row, row_lengths
from light_jax.data.shards import Paths, expand
from light_llm.errors import UserError
from light_llm.files import urls
from light_llm.files.arrow import numbers
from light_llm.files.chunks import Chunk
from light_llm.files.parquet import check_claims, leaf_of, leaves
from light_llm.preprocess.schema import LENGTH, TOKENS

COUNTS_EMPTY_LISTS = ("parquet-cpp-arrow", "Polars", "DuckDB")
LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
READERS = 8
SOURCE, SHARE = "source", "share"
"""Of a shard in a mixture's fingerprint: the name of its source, and that one's part of it."""

Fingerprint = list[dict[str, Any]]


@dataclass(frozen=True)
class IndexedShard:
    """A shard: its path, its rows and tokens per row group (int64 [groups]), and its checksum."""

    path: str
    rows: np.ndarray
    tokens: np.ndarray
    size: int
    footer_crc32: int


def index_shards(
    paths: Paths, vocab_size: int | None = None, field: str = "train_data"
) -> list[IndexedShard]:
    """The shards behind `paths`, with counts that are proven and ids that are below vocab_size.

    Raises:
        UserError: no shards, or a shard that cannot be used; names it and, where known, the row.
    """
    files = expand(paths, field)
    with ThreadPoolExecutor(min(READERS, len(files))) as pool:
        pending = [pool.submit(_index_shard, file, vocab_size) for file in files]
        try:
            return [shard.result() for shard in pending]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def fingerprint(shards: list[IndexedShard]) -> Fingerprint:
    """What a checkpoint records of its data: JSON that does not depend on where the data is."""
    return [
        {
            "name": os.path.basename(shard.path),
            "rows": int(shard.rows.sum()),
            "tokens": int(shard.tokens.sum()),
            "size": shard.size,
            "footer_crc32": shard.footer_crc32,
        }
        for shard in shards
    ]


def of_source(shards: Fingerprint, name: str, share: Fraction) -> Fingerprint:
    """The fingerprint of a source as a part of a mixture's. The name is for messages alone."""
    return [{**shard, SOURCE: name, SHARE: str(share)} for shard in shards]


def describe_change(old: Fingerprint, new: Fingerprint) -> str | None:
    """How the shards, and in a mixture the shares of its sources, differ between two fingerprints;
    None if they are the same."""
    if not any(SOURCE in shard for shard in [*old, *new]):
        return _change_of_shards(old, new)
    before, after = _sources(old), _sources(new)
    if len(before) != len(after):
        return f"sources: {_told(before)} -> {_told(after)}"
    parts = []
    for was, is_now in zip(before, after, strict=True):
        if was.share != is_now.share:
            parts.append(f"share of {is_now.name or was.name}: {was.share} -> {is_now.share}")
        if (change := _change_of_shards(was.shards, is_now.shards)) is not None:
            parts.append(f"shards of {is_now.name or was.name}: {change}")
    return "; ".join(parts) or None


class _Source(NamedTuple):
    name: str | None
    share: str
    shards: Fingerprint


def _sources(shards: Fingerprint) -> list[_Source]:
    """The sources of a mixture; of shards that are none, one without a name."""
    found: list[_Source] = []
    for shard in shards:
        plain = {key: value for key, value in shard.items() if key not in (SOURCE, SHARE)}
        name = shard.get(SOURCE)
        if not found or found[-1].name != name:
            found.append(_Source(name, str(shard.get(SHARE, 1)), []))
        found[-1].shards.append(plain)
    return found


def _told(sources: list[_Source]) -> str:
    named = [f"{source.name} {source.share}" for source in sources if source.name is not None]
    return f"{len(named)} ({', '.join(named)})" if named else "none, shards alone"


def _change_of_shards(old: Fingerprint, new: Fingerprint) -> str | None:
    before, after = _by_name(old), _by_name(new)
    parts = [
        _listed("added", [name for name in after if name not in before]),
        _listed("removed", [name for name in before if name not in after]),
        _listed(
            "changed",
            [_difference(name, before[name], after[name]) for name in before if name in after],
        ),
    ]
    if not any(parts) and old != new:
        parts = ["the same shards in another order"]
    return "; ".join(part for part in parts if part) or None


def _by_name(shards: Fingerprint) -> dict[str, dict[str, Any]]:
    """Shards by name; folders may hold the same name, so a second one is `name (2)`."""
    seen: Counter[str] = Counter()
    named = {}
    for shard in shards:
        seen[shard["name"]] += 1
        count = seen[shard["name"]]
        named[shard["name"] if count == 1 else f"{shard['name']} ({count})"] = shard
    return named


def _difference(name: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    if old == new:
        return ""
    changes = [
        f"{key} {old[key]} -> {new[key]}" for key in ("rows", "tokens") if old[key] != new[key]
    ]
    return f"{name} ({', '.join(changes) or 'other contents'})"


def _listed(verb: str, names: list[str]) -> str:
    names = [name for name in names if name]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{verb}: {', '.join(names[:5])}{more}" if names else ""


def _index_shard(path: str, vocab_size: int | None) -> IndexedShard:
    footer = read_footer(path)
    metadata = footer.metadata
    leaf, has_length = _columns(footer)
    read = leaves(metadata, TOKENS) + (leaves(metadata, LENGTH) if has_length else [])
    check_claims(footer.groups, metadata.num_rows, footer.size, path, read)
    rows = np.array([group.rows for group in footer.groups], np.int64)
    lengths = (
        _read_lengths(footer) if has_length and not _proves(footer, leaf, vocab_size) else None
    )
    of_group = [None] * len(rows) if lengths is None else np.split(lengths, np.cumsum(rows)[:-1])
    counts = [
        _tokens_of_group(footer, group, leaf, of_group[group], vocab_size)
        for group in range(len(rows))
    ]
    return IndexedShard(path, rows, np.array(counts, np.int64), footer.size, footer.crc32)


def _columns(footer: Footer) -> tuple[int, bool]:
    """The leaf column of the tokens, and whether there is a column `length` of integers.

    Raises:
        UserError: no column of token lists.
    """
    schema = footer.metadata.schema.to_arrow_schema()
    if schema.names.count(TOKENS) != 1:
        raise UserError(
            f"{footer.path}: the shard needs one column {TOKENS!r} and has "
            f"{', '.join(schema.names) or 'no columns'}; make shards with llm-preprocess, or "
            "rename the column that holds lists of token ids"
        )
    kind = schema.field(TOKENS).type
    types = pa.types
    if not (any(is_list(kind) for is_list in LISTS) and types.is_integer(kind.value_type)):
        raise UserError(
            f"{footer.path}: column {TOKENS!r} is {kind}; it must be a list of integers"
        )
    try:
        leaf = leaf_of(footer.metadata, TOKENS)
    except ValueError as error:
        raise UserError(
            f"{footer.path}: column {TOKENS!r} cannot be told from others ({error}); write the "
            "shard again with this column and `length` alone"
        ) from None
    has_length = schema.names.count(LENGTH) == 1 and types.is_integer(schema.field(LENGTH).type)
    return leaf, has_length


def _tokens_of_group(
    footer: Footer, group: int, leaf: int, lengths: np.ndarray | None, vocab_size: int | None
) -> int:
    """How many tokens a row group holds; it is decoded only where the footer proves no count.

    Raises:
        UserError: as `decode`, or `lengths`, the column `length`, does not count the tokens.
    """
    claim = _claim(footer.groups[group].chunks[leaf], vocab_size)
    if claim is not None:
        tokens, slots_without = claim
        if lengths is not None:
            if (lengths.sum(), (lengths == 0).sum()) == (tokens, slots_without):
                return tokens
        elif not slots_without and _counts_empty_lists(footer):
            return tokens
    decoded = decode(footer, group, vocab_size).size
    if lengths is not None and lengths.sum() != decoded:
        _refuse_lengths(footer, group, lengths)
    return decoded


def _proves(footer: Footer, leaf: int, vocab_size: int | None) -> bool:
    """Whether a remote shard's footer proves its counts; else all of it is fetched to count."""
    if not urls.is_url(footer.path) or not _counts_empty_lists(footer):
        return False
    claims = [_claim(group.chunks[leaf], vocab_size) for group in footer.groups]
    return all(claim is not None and not claim[1] for claim in claims)


def _counts_empty_lists(footer: Footer) -> bool:
    return str(footer.metadata.created_by).startswith(COUNTS_EMPTY_LISTS)


def _claim(chunk: Chunk, vocab_size: int | None) -> tuple[int, int] | None:
    """(tokens, slots without one) by a column's statistics, if these clear every id too."""
    if chunk.null_count is None:
        return None
    tokens = chunk.num_values - chunk.null_count
    limit = 2**31 if vocab_size is None else vocab_size
    if tokens:
        if chunk.bounds is None:
            return None
        least, most = chunk.bounds
        if not 0 <= least <= most < limit:  # of unsigned ids the largest look negative
            return None
    return tokens, chunk.null_count


def _read_lengths(footer: Footer) -> np.ndarray | None:
    """The column `length`, int64 [rows]; None if it is incomplete."""
    try:
        column = footer.file().read(columns=[LENGTH], use_threads=False).column(LENGTH)
    except UNREADABLE as error:
        raise UserError(f"{footer.path}: column 'length' is corrupt ({error})") from None
    if len(column) != footer.metadata.num_rows:
        raise UserError(
            f"{footer.path}: column 'length' holds {len(column)} rows where the footer says "
            f"{footer.metadata.num_rows}; write the shard again"
        )
    if column.null_count:
        return None
    parts = [numbers(part).astype(np.int64) for part in column.chunks]
    return np.concatenate([np.empty(0, np.int64), *parts])


def _refuse_lengths(footer: Footer, group: int, lengths: np.ndarray) -> None:
    actual = row_lengths(footer, group)
    row = int(np.argmax(actual != lengths))
    raise UserError(
        f"{footer.path}: row {first_row(footer, group) + row} (the first is 0) has "
        f"length={lengths[row]} and {actual[row]} tokens; write the shard again, or without the "
        "column 'length', which is optional"
    )
