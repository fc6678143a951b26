"""The job: open the corpora, settle on a tokenizer, write each corpus, publish."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from light_llm.disk import flush
from light_llm.errors import UserError
from light_llm.preprocess.config import PreprocessConfig
from light_llm.preprocess.corpus import Corpus, FileCorpus, Skipped
from light_llm.preprocess.entropy import unigram_entropy
from light_llm.preprocess.files import find_files
from light_llm.preprocess.huggingface import open_hub
from light_llm.preprocess.journal import Journal
from light_llm.preprocess.manifest import fingerprint, versions, write_manifest
from light_llm.preprocess.notices import are, counted, notice, notice_skipped
from light_llm.preprocess.output import (
    check_free,
    check_output,
    check_place,
    placed,
    publish,
    recover,
    staging,
)
from light_llm.preprocess.part import write_part
from light_llm.preprocess.rows import RowText, fields_of, load_adapter
from light_llm.preprocess.shards import Shard
from light_llm.preprocess.train import load_named, train_tokenizer
from light_llm.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    pass


@dataclasses.dataclass(frozen=True)
class Side:
    """What went into train, or val, of one corpus."""

    documents: int
    characters: int
    tokens: int
    files: int


@dataclasses.dataclass(frozen=True)
class Summary:
    parts: dict[str, tuple[Side, Side]]
    """Train and val of each corpus, by its subfolder; "" where there is one corpus only."""
    vocab_size: int
    unigram_entropy: float
    """Nats per token, of val; of train where there is no val."""
    tokenizer: Path

    @property
    def train(self) -> Side:
        return _sum(train for train, _ in self.parts.values())

    @property
    def val(self) -> Side:
        return _sum(val for _, val in self.parts.values())


def preprocess(config: PreprocessConfig) -> Summary:
    """Do what `config` asks for: shards in output/train and output/val, output/tokenizer.

    Progress and notices go to stderr. What is written becomes visible at the end, at once. A run
    that is stopped, however, after its first shard is continued by the next that asks for the same.

    Raises:
        UserError: an input, the output or the tokenizer is unusable; the output is as it was.
    """
    _set_threads(config.workers)
    check_place(config.output)
    if config.save_tokenizer is not None:
        check_place(config.save_tokenizer, "--save-tokenizer")
        check_free(config.save_tokenizer, config.overwrite)
    adapter = None if config.adapter_module is None else load_adapter(config.adapter_module)
    rows = RowText(fields_of(config.hf_dataset, config.text_column), adapter and adapter[0])
    names = config.hf_configs or ("",)
    with staging(config.output) as stage:
        recover(stage, config.output)
        check_output(config.output, config.overwrite, names)
        corpora = open_corpora(config, rows)
        asked: dict[str, Any] = {
            "options": config.decisive(),
            "sources": {corpus.name: corpus.identity() for corpus in corpora},
            "adapter": adapter and adapter[1],
            "versions": versions(),
            "tokenizer": _save_loaded(config, stage / "loaded"),
        }
        tokenizer, journal = _begin(config, stage, asked, corpora)
        new = stage / "new"
        try:
            for corpus in corpora:
                if not journal.part(corpus.name).done:
                    write_part(config, corpus, tokenizer, journal, new)
        except BaseException:
            if journal.shards:
                kept = are(len(journal.shards), "shard")
                notice(f"{kept} kept; the same command continues from there")
            raise
        parts = [journal.part(corpus.name) for corpus in corpora]
        notice_skipped((Skipped(**part.skipped) for part in parts), config.min_length)
        assert journal.tokenizer is not None
        write_manifest(
            new, asked["options"], asked["sources"], tokenizer, journal.tokenizer, journal.shards
        )
        summary = _summary(config, journal, tokenizer, new)
        if config.save_tokenizer is not None:
            shutil.copytree(new / "tokenizer", config.save_tokenizer, dirs_exist_ok=True)
        publish(stage, config.output, names)
    return summary


def open_corpora(config: PreprocessConfig, rows: RowText) -> Sequence[Corpus]:
    if config.hf_dataset is not None:
        return open_hub(config, rows)
    own = [config.output / entry for entry in placed(("",))]
    files, duplicates = find_files(config.input, config.include, config.exclude, without=own)
    if duplicates:
        notice(f"{are(duplicates, 'file')} given more than once and taken once")
    return [FileCorpus(files, rows, config.min_length, config.input)]


def _save_loaded(config: PreprocessConfig, folder: Path) -> str | None:
    """Save the tokenizer that is to be loaded and give its fingerprint; None: one is trained."""
    if config.tokenizer_path is None:
        return None
    shutil.rmtree(folder, ignore_errors=True)
    load_named(config, config.tokenizer_path).save(folder)
    return fingerprint(folder)


def _begin(
    config: PreprocessConfig, stage: Path, asked: dict[str, Any], corpora: Sequence[Corpus]
) -> tuple[Tokenizer, Journal]:
    """The tokenizer, saved in the stage, and the journal of a former run of the same or a new one.

    Raises:
        UserError: there are shards of a run that was asked for something else.
    """
    journal = Journal(stage / "journal.jsonl")
    folder = stage / "new" / "tokenizer"
    if journal.asked != asked:
        if journal.shards:
            there = counted(len(journal.shards), "shard")
            if not config.overwrite:
                raise UserError(_difference(config, journal, asked, there))
            notice(f"what is there of a run that was stopped is discarded ({there})")
        journal.path.unlink(missing_ok=True)
        shutil.rmtree(stage / "new", ignore_errors=True)
        journal = Journal(journal.path)
        journal.ask(asked)
    if journal.tokenizer is None:
        shutil.rmtree(folder, ignore_errors=True)
        if asked["tokenizer"] is None:
            train_tokenizer(config, corpora).save(folder)
        else:
            shutil.copytree(stage / "loaded", folder)
        flush(folder)
        journal.save_tokenizer(fingerprint(folder))
    elif journal.shards:
        notice(f"continuing a run that was stopped after {counted(len(journal.shards), 'shard')}")
    keep = {stage / "new" / shard.file for shard in journal.shards}
    for path in (stage / "new").rglob("shard_*"):
        if path not in keep:
            path.unlink()
    return load_tokenizer(folder), journal


def _difference(
    config: PreprocessConfig, journal: Journal, asked: dict[str, Any], there: str
) -> str:
    former = journal.asked or {}
    old = former.get("options", {})
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
        if former.get(key) != asked[key]
    ]
    return (
        f"--output {config.output}: holds {there} of a run that "
        f"was stopped, and this one is another: {'; '.join(changed)}. Continue that one as it was, "
        "or discard it with --overwrite"
    )


def _summary(
    config: PreprocessConfig, journal: Journal, tokenizer: Tokenizer, new: Path
) -> Summary:
    parts = {}
    for name, part in journal.parts.items():
        train, val = (part.under(f"{name}/{side}".lstrip("/")) for side in ("train", "val"))
        parts[name] = (_side(train), _side(val))
    train_files, val_files = (
        [new / shard.file for shard in journal.shards if f"/{shard.file}".rsplit("/", 2)[1] == side]
        for side in ("train", "val")
    )
    entropy = unigram_entropy(val_files or train_files)
    return Summary(parts, tokenizer.vocab_size, entropy, config.output / "tokenizer")


def _side(shards: list[Shard]) -> Side:
    return Side(
        sum(shard.documents for shard in shards),
        sum(shard.characters for shard in shards),
        sum(shard.tokens for shard in shards),
        len(shards),
    )


def _sum(sides: Iterable[Side]) -> Side:
    return Side(*map(sum, zip(*map(dataclasses.astuple, sides), strict=True)))


def _set_threads(workers: int | None) -> None:
    """Before the tokenizers library first works in parallel: its pool is made once a process."""
    if workers is not None:
        os.environ["RAYON_NUM_THREADS"] = str(workers)
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if workers > 1 else "false"
