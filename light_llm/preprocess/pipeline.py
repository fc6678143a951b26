"""The job: open the corpora, settle on a tokenizer, write each corpus, publish."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from light_llm.errors import UserError
from light_llm.files.disk import flush, sync
from light_llm.preprocess.config import PreprocessConfig
from light_llm.preprocess.corpus import Corpus, FileCorpus, Skipped
from light_llm.preprocess.entropy import unigram_entropy
from light_llm.preprocess.files import find_files
from light_llm.preprocess.huggingface import open_hub
from light_llm.preprocess.journal import Damaged, Journal, under
from light_llm.preprocess.manifest import (
    MANIFEST,
    fingerprint,
    read_manifest,
    versions,
    write_manifest,
)
from light_llm.preprocess.notices import are, counted, notice, notice_skipped
from light_llm.preprocess.output import (
    check_copy,
    check_free,
    check_output,
    check_place,
    copy_tokenizer,
    placed,
    publish,
    recover,
    staging,
)
from light_llm.preprocess.part import write_part
from light_llm.preprocess.rows import RowText, fields_of, load_adapter
from light_llm.preprocess.shards import Shard
from light_llm.preprocess.sources import has_rows
from light_llm.preprocess.train import load_named, train_tokenizer
from light_llm.tokenizer import Tokenizer, load_tokenizer


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
    names = config.hf_configs or ("",)
    if config.save_tokenizer is not None:
        check_copy(config.save_tokenizer, config.output, names)
    adapter = None if config.adapter_module is None else load_adapter(config.adapter_module)
    rows = RowText(fields_of(config.hf_dataset, config.text_column), adapter and adapter[0])
    with staging(config.output) as stage:
        completed = recover(stage, config.output, config.overwrite)
        if completed is None:
            check_output(config.output, config.overwrite, names)
        else:
            notice("a run was stopped while its shards were moved into place; now all are there")
        corpora = open_corpora(config, rows)
        asked: dict[str, Any] = {
            "options": config.decisive(),
            "sources": {corpus.name: corpus.identity() for corpus in corpora},
            "adapter": adapter and adapter[1],
            "versions": versions(),
            "tokenizer": _save_loaded(config, stage / "loaded"),
        }
        if completed is not None:
            if completed == asked:
                return _of_output(config, names)
            check_output(config.output, config.overwrite, names)
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
        summary = _summary(config, names, journal.shards, tokenizer.vocab_size, new)
        if config.save_tokenizer is not None:
            copy_tokenizer(new / "tokenizer", config.save_tokenizer)
        publish(stage, config.output, names, asked)
    return summary


def open_corpora(config: PreprocessConfig, rows: RowText) -> Sequence[Corpus]:
    if config.hf_dataset is not None:
        return open_hub(config, rows)
    own = [config.output / entry for entry in placed(("",))]
    if config.save_tokenizer is not None:
        own.append(config.save_tokenizer)
    files, duplicates = find_files(config.input, config.include, config.exclude, without=own)
    if duplicates:
        notice(f"{are(duplicates, 'file')} given more than once and taken once")
    for field in ("text_column", "adapter_module"):
        value = getattr(config, field)
        if value is not None and not any(has_rows(file.path) for file in files):
            raise UserError(
                f"{field}={value!r} has no meaning for files of text, and the input has no others "
                "(.jsonl, .jsonl.gz, .jsonl.zst, .parquet); leave it out"
            )
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
        UserError: there are shards of a run that was asked for something else, or damaged ones.
    """
    journal = _former(config, stage, asked)
    folder = stage / "new" / "tokenizer"
    if journal.asked is None:
        journal.ask(asked)
    if config.save_tokenizer is not None:
        known = stage / "loaded" if journal.tokenizer is None else folder
        check_free(config.save_tokenizer, config.overwrite, known)
    if journal.tokenizer is None:
        shutil.rmtree(folder, ignore_errors=True)
        if asked["tokenizer"] is None:
            train_tokenizer(config, corpora).save(folder)
        else:
            shutil.copytree(stage / "loaded", folder)
        flush(folder)
        sync(folder.parent)
        sync(stage)
        journal.save_tokenizer(fingerprint(folder))
    elif journal.shards:
        notice(f"continuing a run that was stopped after {counted(len(journal.shards), 'shard')}")
    keep = {stage / "new" / shard.file for shard in journal.shards}
    for path in (stage / "new").rglob("shard_*"):
        if path not in keep:
            path.unlink()
    return load_tokenizer(folder), journal


def _former(config: PreprocessConfig, stage: Path, asked: dict[str, Any]) -> Journal:
    """The journal of the run to continue; an empty one, and nothing beside it, if there is none."""
    path = stage / "journal.jsonl"
    try:
        journal = Journal(path)
        there = counted(len(journal.shards), "shard")
        if journal.asked == asked:
            _check_kept(journal, stage / "new")
            return journal
        if journal.shards and not config.overwrite:
            raise UserError(_difference(config, journal, asked, there))
        discarded = there if journal.shards else None
    except Damaged as error:
        if not config.overwrite:
            raise
        discarded = str(error)
    if discarded:
        notice(f"what is there of a run that was stopped is discarded ({discarded})")
    path.unlink(missing_ok=True)
    shutil.rmtree(stage / "new", ignore_errors=True)
    return Journal(path)


def _check_kept(journal: Journal, new: Path) -> None:
    """
    Raises:
        Damaged: what the journal says is on disk is not, or is another.
    """
    for shard in journal.shards:
        path = new / shard.file
        size = path.stat().st_size if path.is_file() else None
        if size != shard.bytes:
            there = "is gone" if size is None else f"has {counted(size, 'byte')}"
            raise Damaged(
                f"{path}: {there}, and the run that was stopped wrote "
                f"{counted(shard.bytes, 'byte')}; begin anew with --overwrite"
            )
    folder = new / "tokenizer"
    if journal.tokenizer is not None and (
        not folder.is_dir() or fingerprint(folder) != journal.tokenizer
    ):
        raise Damaged(
            f"{folder}: is not the tokenizer that the run that was stopped wrote there; begin anew "
            "with --overwrite"
        )


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


def _of_output(config: PreprocessConfig, names: Sequence[str]) -> Summary:
    """Of the run whose publication was just completed."""
    manifest = read_manifest(config.output / MANIFEST)
    assert manifest is not None
    shards = [Shard(**row) for row in manifest["shards"]]
    if config.save_tokenizer is not None:
        saved = config.output / "tokenizer"
        check_free(config.save_tokenizer, config.overwrite, saved)
        copy_tokenizer(saved, config.save_tokenizer)
    size = manifest["tokenizer"]["vocab_size"]
    return _summary(config, names, shards, size, config.output)


def _summary(
    config: PreprocessConfig,
    names: Sequence[str],
    shards: Sequence[Shard],
    vocab_size: int,
    folder: Path,
) -> Summary:
    """Of `shards`, which are below `folder`."""
    parts = {}
    files: dict[str, list[Path]] = {"train": [], "val": []}
    for name in names:
        train, val = (under(f"{name}/{side}".lstrip("/"), shards) for side in ("train", "val"))
        parts[name] = (_side(train), _side(val))
        files["train"] += [folder / shard.file for shard in train]
        files["val"] += [folder / shard.file for shard in val]
    entropy = unigram_entropy(files["val"] or files["train"])
    return Summary(parts, vocab_size, entropy, config.output / "tokenizer")


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
