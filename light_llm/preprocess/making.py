"""One part of a run in parts: its own lock, journal and shards."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from light_llm.errors import UserError
from light_llm.files.disk import Held, Lock, locked, remove
from light_llm.preprocess.choice import Choice
from light_llm.preprocess.dedupe import deduped
from light_llm.preprocess.journal import Journal
from light_llm.preprocess.manifest import TOKENIZER
from light_llm.preprocess.notices import are, counted, notice
from light_llm.preprocess.output import STAGE
from light_llm.preprocess.part import write_part
from light_llm.preprocess.plan import Plan, folder_of, read_plan
from light_llm.preprocess.request import Request, check_prepared
from light_llm.preprocess.resume import check_tokenizer, drop_uncommitted, journal_of
from light_llm.preprocess.split import Split
from light_llm.preprocess.stage import JOURNAL, LOCK, NEW, check_part
from light_llm.preprocess.watch import Seen, watching, write_seen
from light_llm.tokenizer import load_tokenizer

PATIENCE = 1.0
"""Seconds that a part waits for its lock: who asks which parts run takes it for a moment."""


@dataclass(frozen=True)
class Made:
    """A part that is done."""

    documents: int
    tokens: int
    before: bool
    """Whether it was done already."""


def make_part(request: Request, part: int, patience: float = PATIENCE) -> Made:
    """Make the shards of one part, or what is missing of them.

    Args:
        patience: seconds to wait for another who makes it or finishes the run.

    Raises:
        UserError: nothing is prepared, or something else was; another makes it; a file of its
            input cannot be read. What is committed stays.
    """
    config = request.config
    output, stage = config.output, config.output.absolute() / STAGE
    taken = f"--output {output}: is being prepared or finished by another llm-preprocess; wait"
    making = f"--output {output}: part {part} is being made by another llm-preprocess; wait for it"
    try:
        check_prepared(config, read_plan(stage))
        with _held(stage / LOCK, taken, patience, shared=True) as stage_lock:
            plan = check_prepared(config, read_plan(stage))
            request.check(plan)
            folder = folder_of(stage, part)
            check_part(stage, folder)
            with _held(folder / LOCK, making, patience) as lock:

                def check() -> None:
                    gone = f"{stage}: is no longer the folder that part {part} began in, so "
                    stage_lock.check(f"{gone}nothing more is written there; put it back")
                    lock.check(f"{gone}nothing more is written there; put it back")

                return _make(request, plan, part, _Folders(stage, folder, check))
    except OSError as error:
        what = f"--output {output}" if error.filename is None else error.filename
        raise UserError(f"{what}: {error.strerror or error}") from error


@contextlib.contextmanager
def _held(path: Path, message: str, patience: float, shared: bool = False) -> Iterator[Lock]:
    deadline = time.monotonic() + patience
    with contextlib.ExitStack() as stack:
        while True:
            try:
                lock = stack.enter_context(locked(path, message, shared=shared))
                break
            except Held:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield lock


@dataclass(frozen=True)
class _Folders:
    stage: Path
    part: Path
    check: Callable[[], None]


def _make(request: Request, plan: Plan, part: int, folders: _Folders) -> Made:
    config, corpus, folder = request.config, request.corpus, folders.part
    asked, new = plan.asked_of(part), folder / NEW
    if not config.overwrite:
        journal = Journal(folder / JOURNAL)
        if journal.asked == asked and journal.part(corpus.name).done:
            return _made_before(folder, journal)
    journal = journal_of(config, folder, asked, folders.check)
    if journal.asked is None:
        journal.ask(asked)
    own = journal.part(corpus.name)
    if own.done:
        return _made_before(folder, journal)
    if journal.shards:
        notice(f"continuing part {part} after {counted(len(journal.shards), 'shard')}")
    saved = new / TOKENIZER  # here its own processes load it from
    remove(saved)
    check_tokenizer(folders.stage / NEW / TOKENIZER, plan.tokenizer)
    shutil.copytree(folders.stage / NEW / TOKENIZER, saved)
    tokenizer = load_tokenizer(saved, fetch=False)
    if own.split is None:
        # by its hash alone, so that a text's side does not depend on its part
        journal.begin(corpus.name, Split(config.val_fraction))
    drop_uncommitted(journal, new)
    whole = deduped(corpus, folders.stage, plan.copies)
    files = dataclasses.replace(whole, files=corpus.files[plan.files_of(part)])
    seeded = config.model_copy(update={"shuffle_seed": _seed(config.shuffle_seed, part)})
    choice = Choice(tokenizer, config.engine, config.add_special_tokens)
    watch = functools.partial(watching, folder, Seen.of(journal.shards))
    try:
        write_part(seeded, files, tokenizer, choice, journal, new, watch)
    except BaseException:
        if journal.shards:
            kept = are(len(journal.shards), "shard")
            notice(f"{kept} kept; the same command continues from there")
        raise
    write_seen(folder, dataclasses.replace(Seen.of(journal.shards), share=1.0))
    remove(saved)
    return _made(journal, before=False)


def _made_before(folder: Path, journal: Journal) -> Made:
    write_seen(folder, dataclasses.replace(Seen.of(journal.shards), share=1.0))
    return _made(journal, before=True)


def _made(journal: Journal, before: bool) -> Made:
    shards = journal.shards
    documents, tokens = sum(s.documents for s in shards), sum(s.tokens for s in shards)
    return Made(documents, tokens, before)


def _seed(seed: int | None, part: int) -> int | None:
    """The seed of a part: parts of one seed are not shuffled alike."""
    if seed is None:
        return None
    digest = hashlib.blake2b(f"{seed} {part}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
