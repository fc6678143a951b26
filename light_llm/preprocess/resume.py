"""A stopped run: whether this run continues it, and whether what it left is still there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from light_llm.errors import UserError
from light_llm.files.disk import remove
from light_llm.preprocess.config import PreprocessConfig
from light_llm.preprocess.journal import Damaged, Journal
from light_llm.preprocess.manifest import TOKENIZER, tokenizer_fingerprint
from light_llm.preprocess.notices import counted, notice
from light_llm.preprocess.shards import counts, sha256
from light_llm.preprocess.stage import JOURNAL, NEW


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
            _check_kept(journal, stage / NEW)
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
    remove(stage / NEW)
    return Journal(path, check)


def _check_kept(journal: Journal, new: Path) -> None:
    """
    Raises:
        Damaged: what the journal names is not on disk, or differs.
    """
    for shard in journal.shards:
        path = new / shard.file
        size = path.lstat().st_size if path.is_file() else None
        if size != shard.bytes:
            there = "is gone" if size is None else f"has {counted(size, 'byte')}"
            raise Damaged(
                f"{path}: {there}, and the stopped run wrote "
                f"{counted(shard.bytes, 'byte')}; begin again with --overwrite"
            )
        if sha256(path) != shard.sha256:
            raise Damaged(
                f"{path}: its bytes are not those that the run that was stopped wrote (SHA-256); "
                "begin again with --overwrite"
            )
        held = counts(path)
        if held != (shard.documents, shard.tokens):
            raise Damaged(
                f"{path}: holds {held[0]:,} documents and {held[1]:,} tokens, and the stopped "
                f"run wrote {shard.documents:,} and {shard.tokens:,}; begin again with --overwrite"
            )
    folder = new / TOKENIZER
    if journal.tokenizer is not None and (
        not folder.is_dir() or tokenizer_fingerprint(folder) != journal.tokenizer
    ):
        raise Damaged(
            f"{folder}: is not the tokenizer that the stopped run wrote; begin again with "
            "--overwrite"
        )


def _difference(
    config: PreprocessConfig, journal: Journal, asked: dict[str, Any], there: str
) -> str:
    previous = journal.asked or {}
    old = previous.get("options")
    old = old if isinstance(old, dict) else {}
    changed = [
        f"{key} was {old.get(key)!r} and is {value!r}"
        for key, value in asked["options"].items()
        if old.get(key) != value
    ]
    changed += [
        f"{what} changed"
        for key, what in (
            ("sources", "the input"),
            ("adapter", "the adapter"),
            ("versions", "the version of a library"),
            ("tokenizer", "the tokenizer"),
        )
        if previous.get(key) != asked[key]
    ]
    return (
        f"--output {config.output}: holds {there} of a run that "
        f"was stopped, and this run differs: {'; '.join(changed)}. Continue that run as it was, or "
        "discard it with --overwrite"
    )


def drop_uncommitted(journal: Journal, new: Path) -> None:
    """Delete the shards below `new` that the journal does not name: they are incomplete."""
    committed = {new / shard.file for shard in journal.shards}
    for path in new.rglob("shard_*"):
        if path not in committed:
            path.unlink()
