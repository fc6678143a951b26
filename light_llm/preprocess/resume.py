"""A stopped run: whether this run continues it, and whether what it left is still there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from light_llm.errors import UserError
from light_llm.files.disk import remove
from light_llm.files.parquet import opened
from light_llm.preprocess.config import PreprocessConfig
from light_llm.preprocess.copies import Copies
from light_llm.preprocess.journal import Journal
from light_llm.preprocess.manifest import TOKENIZER, tokenizer_fingerprint
from light_llm.preprocess.notices import counted, notice
from light_llm.preprocess.opening import LONGEST_LINE
from light_llm.preprocess.schema import TEXT
from light_llm.preprocess.shards import ROW_GROUP_DOCUMENTS, Shard, counts, sha256
from light_llm.preprocess.split import text_hashes
from light_llm.preprocess.stage import COPIES, HASHES, JOURNAL, NEW, Damaged
from light_llm.preprocess.texthashes import check_hashes, drop_other_hashes, write_hashes

if TYPE_CHECKING:
    import numpy as np

AGAIN = "begin again with --overwrite"


def journal_of(
    config: PreprocessConfig, stage: Path, asked: dict[str, Any], check: Callable[[], None]
) -> Journal:
    """The journal of the run to continue; if there is none, an empty journal in an emptied stage.

    Args:
        check: raises if the stage is no longer ours.

    Raises:
        UserError: there are shards of a run with other options, or damaged ones.
    """
    path = stage / JOURNAL
    try:
        journal = Journal(path, check)
        there = counted(len(journal.shards), "shard")
        if journal.asked == asked:
            check_kept(journal.shards, stage / NEW)
            check_hashes(journal.hash_files, AGAIN)
            hash_older(journal, stage / NEW)
            if journal.copies is not None:
                Copies(stage / COPIES, journal.copies).check()
            if journal.tokenizer is not None:
                check_tokenizer(stage / NEW / TOKENIZER, journal.tokenizer)
            return journal
        if journal.shards and not config.overwrite:
            raise UserError(_difference(config, journal, asked, there))
        discarded = there if journal.shards else None
    except Damaged as error:
        if not config.overwrite:
            raise
        discarded = str(error)
    if discarded:
        notice(f"what a stopped run left is discarded ({discarded})")
    path.unlink(missing_ok=True)
    for name in (NEW, HASHES, COPIES):
        remove(stage / name)
    return Journal(path, check)


def check_kept(shards: Iterable[Shard], new: Path, remedy: str = AGAIN) -> None:
    """
    Args:
        shards: what a journal names.
        new: the folder that they are below.
        remedy: what the message advises.

    Raises:
        Damaged: one is not on disk, or differs.
    """
    for shard in shards:
        path = new / shard.file
        size = path.lstat().st_size if path.is_file() else None
        if size != shard.bytes:
            there = "is gone" if size is None else f"has {counted(size, 'byte')}"
            raise Damaged(
                f"{path}: {there}, and the stopped run wrote "
                f"{counted(shard.bytes, 'byte')}; {remedy}"
            )
        if sha256(path) != shard.sha256:
            raise Damaged(
                f"{path}: its bytes are not those that the run that was stopped wrote (SHA-256); "
                f"{remedy}"
            )
        held = counts(path)
        if held != (shard.documents, shard.tokens):
            raise Damaged(
                f"{path}: holds {held[0]:,} documents and {held[1]:,} tokens, and the stopped "
                f"run wrote {shard.documents:,} and {shard.tokens:,}; {remedy}"
            )


def hash_older(journal: Journal, new: Path) -> None:
    """Keep the hashes of the texts in shards of an earlier version, which kept none: those of one
    shard at a time, so that there are no more in memory than while a shard is made.

    Raises:
        UserError: a shard cannot be read.
    """
    for name, part in list(journal.parts.items()):
        for shard in list(part.unhashed):
            hashes = write_hashes(journal.next_hashes(name), list(_hashes_in(new / shard.file)))
            journal.hash_one(name, shard, hashes)


def _hashes_in(shard: Path) -> Iterator[np.ndarray]:
    with opened(shard, TEXT) as file:
        for batch in file.batches(TEXT, ROW_GROUP_DOCUMENTS, LONGEST_LINE):
            yield text_hashes(batch.column(0).to_pylist())


def check_tokenizer(folder: Path, fingerprint: str) -> None:
    """
    Raises:
        Damaged: the folder is not there, or holds other files.
    """
    if not folder.is_dir() or tokenizer_fingerprint(folder) != fingerprint:
        raise Damaged(f"{folder}: is not the tokenizer that the stopped run wrote; {AGAIN}")


def _difference(
    config: PreprocessConfig, journal: Journal, asked: dict[str, Any], there: str
) -> str:
    changed = changes(journal.asked or {}, asked)
    return (
        f"--output {config.output}: holds {there} of a run that "
        f"was stopped, and this run differs: {'; '.join(changed)}. Continue that run as it was, or "
        "discard it with --overwrite"
    )


def changes(previous: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """How a run that asks for `asked` differs from one that asked for `previous`, in clauses."""
    old = previous.get("options")
    old = old if isinstance(old, dict) else {}
    now = asked["options"]
    changed = [
        f"{key} was {old.get(key)!r} and is {now.get(key)!r}"
        for key in dict.fromkeys((*now, *old))
        if old.get(key) != now.get(key)
    ]
    return changed + [
        f"{what} changed"
        for key, what in (
            ("sources", "the input"),
            ("adapter", "the adapter"),
            ("versions", "the version of a library"),
            ("tokenizer", "the tokenizer"),
        )
        if previous.get(key) != asked[key]
    ]


def drop_uncommitted(journal: Journal, new: Path) -> None:
    """Delete the shards below `new` that the journal does not name, and the hashes of their texts:
    they are incomplete."""
    drop_all_but((shard.file for shard in journal.shards), new)
    drop_other_hashes(journal.hash_files, journal.path.parent / HASHES)


def drop_all_but(files: Iterable[str], new: Path) -> None:
    """Delete the shards below `new` that are not `files`."""
    known = {new / file for file in files}
    for path in new.rglob("shard_*"):
        if path not in known:
            path.unlink()
