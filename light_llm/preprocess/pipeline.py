"""The job: open the corpora, choose the tokenizer, write each corpus, publish."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from light_llm.errors import UserError
from light_llm.files.disk import flush, remove, sync
from light_llm.preprocess.agreement import check_agreement
from light_llm.preprocess.choice import Choice
from light_llm.preprocess.config import PreprocessConfig
from light_llm.preprocess.corpus import Corpus, FileCorpus
from light_llm.preprocess.dedupe import without_copies
from light_llm.preprocess.files import find_files
from light_llm.preprocess.huggingface import open_hub
from light_llm.preprocess.journal import Journal
from light_llm.preprocess.manifest import (
    MANIFEST,
    TOKENIZER,
    read_manifest,
    tokenizer_fingerprint,
    versions,
    write_manifest,
)
from light_llm.preprocess.notices import are, counted, notice, notice_links, notice_skipped
from light_llm.preprocess.output import (
    check_copy,
    check_free,
    check_output,
    check_place,
    copy_tokenizer,
    placed,
)
from light_llm.preprocess.part import write_part
from light_llm.preprocess.prepared import kept_plan
from light_llm.preprocess.progress import Progress
from light_llm.preprocess.publication import Stage, complete_moves, publish_shards, staging
from light_llm.preprocess.resume import AGAIN, drop_uncommitted, journal_of
from light_llm.preprocess.rows import RowText, fields_of, load_adapter
from light_llm.preprocess.shards import Shard
from light_llm.preprocess.skipped import Skipped
from light_llm.preprocess.sources import has_rows
from light_llm.preprocess.stage import LOADED, NEW
from light_llm.preprocess.summary import Summary, summarize
from light_llm.preprocess.texthashes import HashFile, count_distinct
from light_llm.preprocess.train import load_named, train_tokenizer
from light_llm.tokenizer import Tokenizer, load_tokenizer


def preprocess(config: PreprocessConfig) -> Summary:
    """Do what `config` asks for: shards in output/train and output/val, output/tokenizer.

    Progress and notices go to stderr. The output becomes visible at the end, at once. A run that is
    stopped after its first shard is continued by the next run with the same options.

    Raises:
        UserError: an input, the output or the tokenizer is unusable; the output is as it was.
    """
    if config.parts is not None:
        from light_llm.preprocess.parts import in_parts  # it is made of the steps below

        return in_parts(config)
    set_threads(config.workers)
    check_place(config.output)
    names = config.hf_configs or ("",)
    if config.save_tokenizer is not None:
        check_copy(config.save_tokenizer, config.output, names)
    rows, adapter = row_text(config)
    with staging(config.output) as stage:
        new = stage.path / NEW
        completed = complete_before(config, stage)
        if completed is None:
            check_output(config.output, config.overwrite, names)
        with Progress("looking through the input"):
            corpora = open_corpora(config, rows)
            sources = {corpus.name: corpus.identity() for corpus in corpora}
        asked: dict[str, Any] = {
            "options": config.decisive(),
            "sources": sources,
            "adapter": adapter,
            "versions": versions(),
            "tokenizer": save_loaded(config, stage.path / LOADED),
        }
        if completed is not None:
            if completed == asked:
                return summary_of_output(config, names, corpora)
            check_output(config.output, config.overwrite, names)
        kept_plan(config, stage.path, asked)
        journal = journal_of(config, stage.path, asked, stage.check)
        if journal.asked is None:
            journal.ask(asked)
        corpora = without_copies(config, stage, journal, corpora)
        tokenizer = choose_tokenizer(config, stage, asked, journal, corpora)
        if config.tokenizer_path is not None and not journal.shards:
            with Progress("comparing the tokenizer with transformers"):
                check_agreement(tokenizer, new / TOKENIZER, corpora, config.add_special_tokens)
        drop_uncommitted(journal, new)
        _write_parts(config, corpora, tokenizer, journal, new)
        stage.check()
        with Progress("putting the shards in place"):
            assert journal.tokenizer is not None
            hashes = [(file, AGAIN) for file in journal.hash_files]
            written = journal.tokenizer, journal.shards, hashes, journal.engines
            summary = complete(config, names, tokenizer, asked, *written, stage, corpora)
            publish_shards(stage.path, config.output, names, asked, config.overwrite, stage.check)
    return summary


def complete_before(config: PreprocessConfig, stage: Stage) -> dict[str, Any] | None:
    """Complete a publication that was stopped; returns what its run was asked for, or None."""
    completed = complete_moves(
        stage.path, config.output, config.overwrite, stage.check, verify=True
    )
    if completed is not None:
        notice("a run was stopped while its shards were moved into place; now all are there")
    return completed


def row_text(config: PreprocessConfig) -> tuple[RowText, str | None]:
    """How the text of a row is found, and the digest of the adapter that does it, if one does."""
    adapt, digest = (None, None)
    if config.adapter_module is not None:
        adapt, digest = load_adapter(config.adapter_module)
    return RowText(fields_of(config.hf_dataset, config.text_column), adapt), digest


def open_corpora(config: PreprocessConfig, rows: RowText) -> Sequence[Corpus]:
    if config.hf_dataset is not None:
        return open_hub(config, rows)
    own = [config.output / entry for entry in placed(("",))]
    if config.save_tokenizer is not None:
        own.append(config.save_tokenizer)
    files, duplicates = find_files(config.input, config.include, config.exclude, without=own)
    if duplicates:
        notice(f"{are(duplicates, 'file')} given more than once and taken once")
    notice_links({file.path: file.leads_to for file in files if file.leads_to is not None})
    for field in ("text_column", "adapter_module"):
        value = getattr(config, field)
        if value is not None and not any(has_rows(file.path, rows) for file in files):
            raise UserError(
                f"{field}={value!r} has no meaning for files of text, and the input has no others "
                "(JSON lines, CSV, parquet); leave it out"
            )
    return [FileCorpus(files, rows, config.min_length, config.input)]


def save_loaded(config: PreprocessConfig, folder: Path) -> str | None:
    """Save the tokenizer of tokenizer_path and return its fingerprint; None: one is trained."""
    if config.tokenizer_path is None:
        return None
    remove(folder)
    load_named(config, config.tokenizer_path).save(folder)
    return tokenizer_fingerprint(folder)


def choose_tokenizer(
    config: PreprocessConfig,
    stage: Stage,
    asked: dict[str, Any],
    journal: Journal,
    corpora: Sequence[Corpus],
) -> Tokenizer:
    """The tokenizer in the journal, or a new one, saved where it will be published from."""
    loaded, folder = stage.path / LOADED, stage.path / NEW / TOKENIZER
    if config.save_tokenizer is not None:
        known = loaded if journal.tokenizer is None else folder
        check_free(config.save_tokenizer, config.overwrite, known)
    if journal.tokenizer is None:
        remove(folder)
        if asked["tokenizer"] is None:
            trained = train_tokenizer(config, corpora)
            for corpus in corpora:
                check_skipped(config, corpus, corpus.skipped)
            stage.check()
            trained.save(folder)
        else:
            shutil.copytree(loaded, folder)
        flush(folder)
        sync(folder.parent)
        sync(stage.path)
        journal.save_tokenizer(tokenizer_fingerprint(folder))
    elif journal.shards:
        notice(f"continuing a run that was stopped after {counted(len(journal.shards), 'shard')}")
    return load_tokenizer(folder, fetch=False)


def _write_parts(
    config: PreprocessConfig,
    corpora: Sequence[Corpus],
    tokenizer: Tokenizer,
    journal: Journal,
    new: Path,
) -> None:
    choice = Choice(tokenizer, config.engine, config.add_special_tokens)
    try:
        for corpus in corpora:
            if not journal.part(corpus.name).done:
                write_part(config, corpus, tokenizer, choice, journal, new)
            check_skipped(config, corpus, Skipped(**journal.part(corpus.name).skipped))
    except BaseException:
        if journal.shards:
            kept = are(len(journal.shards), "shard")
            notice(f"{kept} kept; the same command continues from there")
        raise
    parts = [journal.part(corpus.name) for corpus in corpora]
    notice_skipped((Skipped(**part.skipped) for part in parts), config.min_length)


def check_skipped(config: PreprocessConfig, corpus: Corpus, skipped: Skipped) -> None:
    if isinstance(corpus, FileCorpus) and not config.allow_skipped:
        corpus.check_skipped(skipped)


def complete(
    config: PreprocessConfig,
    names: Sequence[str],
    tokenizer: Tokenizer,
    asked: dict[str, Any],
    fingerprint: str,
    shards: Sequence[Shard],
    hashes: Sequence[tuple[HashFile, str]],
    engines: Sequence[str],
    stage: Stage,
    corpora: Sequence[Corpus],
) -> Summary:
    """Add what is written when all shards are there: the manifest and the user's copy of the
    tokenizer.

    Args:
        hashes: of the texts in the shards, with what the message of their damage advises.

    Raises:
        Damaged: they are not what the run wrote.
    """
    new = stage.path / NEW
    duplicates = sum(shard.documents for shard in shards) - count_distinct(hashes)
    made = tokenizer, fingerprint, shards, engines, duplicates
    write_manifest(new, asked["options"], asked["sources"], *made)
    summary = summarize(
        config.output, names, shards, tokenizer.vocab_size, new, duplicates, corpora
    )
    if config.save_tokenizer is not None:
        copy_tokenizer(new / TOKENIZER, config.save_tokenizer)
    return summary


def summary_of_output(
    config: PreprocessConfig, names: Sequence[str], corpora: Sequence[Corpus]
) -> Summary:
    """The summary of a run whose publication was just completed; saves the tokenizer's copy."""
    manifest = read_manifest(config.output / MANIFEST)
    try:
        shards = [Shard.parse(row) for row in manifest["shards"]] if manifest else []
    except ValueError:
        shards = []
    if manifest is None or not shards:
        raise UserError(f"{config.output / MANIFEST}: is not the manifest that the run wrote")
    if config.save_tokenizer is not None:
        saved = config.output / TOKENIZER
        check_free(config.save_tokenizer, config.overwrite, saved)
        copy_tokenizer(saved, config.save_tokenizer)
    size = manifest["tokenizer"]["vocab_size"]
    found = manifest.get("duplicates")  # a manifest of an earlier version has none
    duplicates = found if type(found) is int else None
    return summarize(config.output, names, shards, size, config.output, duplicates, corpora)


def set_threads(workers: int | None) -> None:
    """Must run before the tokenizers library works in parallel: it makes its pool only once."""
    if workers is not None:
        os.environ["RAYON_NUM_THREADS"] = str(workers)
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if workers > 1 else "false"
