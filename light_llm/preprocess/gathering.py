"""The shards of all parts, together under the names that they are published by."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from light_llm.errors import UserError
from light_llm.files.disk import sync
from light_llm.preprocess.config import PreprocessConfig
from light_llm.preprocess.journal import Journal
from light_llm.preprocess.notices import counted
from light_llm.preprocess.plan import Plan, folder_of
from light_llm.preprocess.progress import Progress
from light_llm.preprocess.publication import Stage
from light_llm.preprocess.resume import changes, check_kept, drop_all_but, hash_older
from light_llm.preprocess.shards import Shard
from light_llm.preprocess.stage import JOURNAL, NEW
from light_llm.preprocess.texthashes import HashFile, check_hashes
from light_llm.preprocess.watch import read_seen

NAMED = 20
"""How many of the parts that are missing a message names."""


def journals_of(config: PreprocessConfig, stage: Path, plan: Plan) -> list[Journal]:
    """The journals of all parts, which are done.

    Raises:
        UserError: some are not, or were made for another request.
    """
    journals, missing = [], []
    for part in range(len(plan.parts)):
        folder = folder_of(stage, part)
        journal = Journal(folder / JOURNAL)
        asked = plan.asked_of(part)
        if journal.asked is not None and journal.asked != asked:
            changed = changes(journal.asked, asked) or ["its number"]
            raise UserError(
                f"--output {config.output}: part {part} was made for another request: "
                f"{'; '.join(changed)}; make it again with --part {part} --overwrite"
            )
        if not any(each.done for each in journal.parts.values()):
            share = read_seen(folder).share
            missing.append(f"{part} ({'not begun' if journal.asked is None else f'{share:.0%}'})")
        journals.append(journal)
    if missing:
        named = ", ".join(missing[:NAMED])
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise UserError(
            f"--output {config.output}: {len(missing)} of {counted(len(plan.parts), 'part')} "
            f"{'is' if len(missing) == 1 else 'are'} not made: {named}{more}. Make "
            f"{'it' if len(missing) == 1 else 'them'} with --part, and repeat --finish"
        )
    return journals


def hash_files_of(stage: Path, journals: Sequence[Journal]) -> list[tuple[HashFile, str]]:
    """The hashes of the texts of all parts, each file with the remedy if it is damaged.

    Raises:
        Damaged: one is gone or damaged.
    """
    for part, journal in enumerate(journals):
        hash_older(journal, folder_of(stage, part) / NEW)
    found = [
        (file, _again(part)) for part, journal in enumerate(journals) for file in journal.hash_files
    ]
    for file, remedy in found:
        check_hashes([file], remedy)
    return found


def _again(part: int) -> str:
    return f"make the part again with --part {part} --overwrite"


def gather(stage: Stage, journals: Sequence[Journal]) -> list[Shard]:
    """Move the shards of all parts to stage/new, numbered in the order of the parts; returns them.

    It may be stopped at any point and repeated: a shard is in the one place or the other.

    Raises:
        UserError: one is gone or damaged; nothing is moved then.
    """
    moves = list(_moves(stage.path, journals))
    new = stage.path / NEW
    with Progress("checking the shards"):
        for part, source, shard, moved in moves:
            if (source / shard.file).exists():
                check_kept([shard], source, _again(part))
            else:  # moved by a --finish that was stopped
                check_kept([moved], new, _again(part))
    stage.check()
    drop_all_but((moved.file for *_, moved in moves), new)
    for _, source, shard, moved in moves:
        if (source / shard.file).exists():
            (new / moved.file).parent.mkdir(exist_ok=True)
            (source / shard.file).rename(new / moved.file)
    for folder in {(new / moved.file).parent for *_, moved in moves} | {new}:
        sync(folder)
    return [moved for *_, moved in moves]


def _moves(stage: Path, journals: Sequence[Journal]) -> Iterator[tuple[int, Path, Shard, Shard]]:
    """For each shard the part, the folder that it is below, itself, and as it will be."""
    numbers: Counter[str] = Counter()
    for part, journal in enumerate(journals):
        for shard in journal.shards:
            side = shard.file.rpartition("/")[0]
            file = f"{side}/shard_{numbers[side]:05d}.parquet"
            numbers[side] += 1
            yield part, folder_of(stage, part) / NEW, shard, dataclasses.replace(shard, file=file)
