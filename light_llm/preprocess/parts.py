"""A run in parts, on one machine or on many: prepare once, make each part, finish.

Every step may be stopped and repeated. Who makes a part shares the lock of the stage and holds the
lock of the part; who prepares or finishes holds the lock of the stage alone.
"""

from __future__ import annotations

import dataclasses

from light_llm.errors import UserError
from light_llm.files.disk import flush, remove, sync
from light_llm.preprocess.agreement import check_agreement
from light_llm.preprocess.config import PreprocessConfig
from light_llm.preprocess.corpus import FileCorpus
from light_llm.preprocess.dedupe import without_copies
from light_llm.preprocess.gathering import gather, hash_files_of, journals_of
from light_llm.preprocess.journal import Journal
from light_llm.preprocess.making import make_part
from light_llm.preprocess.manifest import MANIFEST, TOKENIZER, read_manifest, shareable
from light_llm.preprocess.notices import counted, notice, notice_skipped
from light_llm.preprocess.opening import printable, size_of
from light_llm.preprocess.output import check_free, check_output
from light_llm.preprocess.part import no_documents
from light_llm.preprocess.pipeline import (
    check_skipped,
    choose_tokenizer,
    complete,
    complete_before,
    save_loaded,
    summary_of_output,
)
from light_llm.preprocess.plan import Plan, divide, folder_of, read_plan, write_plan
from light_llm.preprocess.prepared import kept_plan
from light_llm.preprocess.progress import Progress
from light_llm.preprocess.publication import publish_shards, staging
from light_llm.preprocess.request import NAMES, Request, check_prepared, request_of
from light_llm.preprocess.resume import check_tokenizer, journal_of
from light_llm.preprocess.skipped import Skipped
from light_llm.preprocess.stage import JOURNAL, LOADED, NEW, PARTS
from light_llm.preprocess.summary import Summary
from light_llm.tokenizer import load_tokenizer


def prepare(request: Request) -> Plan | None:
    """Save the tokenizer and the plan that all parts need; nothing is done if they are there.

    Returns None if this completed the publication of the same run, which was stopped there.

    Raises:
        UserError: there are fewer files than parts, what another run left is in the way, or the
            tokenizer cannot be loaded or trained.
    """
    config, corpus = request.config, request.corpus
    with staging(config.output) as stage:
        completed = complete_before(config, stage)
        asked = request.asked | {"tokenizer": save_loaded(config, stage.path / LOADED)}
        if completed == asked:
            return None
        check_output(config.output, config.overwrite, NAMES)
        plan = kept_plan(config, stage.path, asked)
        if plan is None:
            plan = Plan(asked, "", _files_of_parts(config, corpus))
            remove(stage.path / PARTS)
            journal = journal_of(config, stage.path, asked, stage.check)
            if journal.asked is None:
                journal.ask(asked)
            corpora = without_copies(config, stage, journal, [corpus])
            tokenizer = choose_tokenizer(config, stage, asked, journal, corpora)
            if config.tokenizer_path is not None:
                with Progress("comparing the tokenizer with transformers"):
                    saved = stage.path / NEW / TOKENIZER
                    check_agreement(tokenizer, saved, corpora, config.add_special_tokens)
            assert journal.tokenizer is not None
            plan = dataclasses.replace(plan, tokenizer=journal.tokenizer, copies=journal.copies)
            stage.check()
            for part in range(len(plan.parts)):
                folder_of(stage.path, part).mkdir(parents=True)
            flush(stage.path / PARTS)
            sync(stage.path)
            write_plan(stage.path, plan)
        remove(stage.path / LOADED)
        (stage.path / JOURNAL).unlink(missing_ok=True)  # the plan has what it said
    return plan


def _files_of_parts(config: PreprocessConfig, corpus: FileCorpus) -> list[list[tuple[str, int]]]:
    assert config.parts is not None
    files = [(printable(file.path), size_of(file.path)) for file in corpus.files]
    if len(files) < config.parts:
        raise UserError(
            f"parts={config.parts} is more than the {counted(len(files), 'file')} of the input, "
            "and a part has one at least; take fewer parts, or cut a large file of lines, as "
            "`split -n l/8 --additional-suffix=.jsonl big.jsonl piece-` does, and give the pieces"
        )
    return [files[each] for each in divide([size for _, size in files], config.parts)]


def finish(request: Request) -> Summary:
    """Check that all parts are there and whole, and publish their shards together.

    Raises:
        UserError: one is missing, damaged or another request's, or is being made; nothing is
            visible then.
    """
    config, corpus = request.config, request.corpus
    with staging(config.output) as stage:
        completed = complete_before(config, stage)
        if completed is not None and completed | {"tokenizer": None} == request.asked | {
            "tokenizer": None
        }:
            return summary_of_output(config, NAMES, [request.corpus])
        plan = read_plan(stage.path)
        if plan is None and _is_published(request):
            notice(f"{config.output} holds the shards of these parts already")
            return summary_of_output(config, NAMES, [request.corpus])
        plan = check_prepared(config, plan)
        request.check(plan)
        check_output(config.output, config.overwrite, NAMES)
        journals = journals_of(config, stage.path, plan)
        tokenizer_folder = stage.path / NEW / TOKENIZER
        check_tokenizer(tokenizer_folder, plan.tokenizer)
        if config.save_tokenizer is not None:
            check_free(config.save_tokenizer, config.overwrite, tokenizer_folder)
        skipped = Skipped.total(Skipped(**j.part(corpus.name).skipped) for j in journals)
        corpus.skipped = skipped
        if not any(journal.shards for journal in journals):
            raise UserError(no_documents(config, corpus))
        check_skipped(config, corpus, skipped)
        _check_sides(config, journals)
        hashes = hash_files_of(stage.path, journals)
        shards = gather(stage, journals)
        notice_skipped([skipped], config.min_length)
        with Progress("putting the shards in place"):
            engines = sorted({engine for journal in journals for engine in journal.engines})
            tokenizer = load_tokenizer(tokenizer_folder, fetch=False)
            made = plan.tokenizer, shards, hashes, engines
            summary = complete(config, NAMES, tokenizer, plan.asked, *made, stage, [corpus])
            publish_shards(
                stage.path, config.output, NAMES, plan.asked, config.overwrite, stage.check
            )
    return summary


def _check_sides(config: PreprocessConfig, journals: list[Journal]) -> None:
    """Note that no text is held out.

    Raises:
        UserError: all are.
    """
    sides = {shard.file.partition("/")[0] for journal in journals for shard in journal.shards}
    if "train" not in sides:
        raise UserError(
            f"val_fraction={config.val_fraction} holds out all texts of the parts, so there is "
            "nothing to train on; take a lower one, or run without --parts"
        )
    if config.val_fraction and "val" not in sides:
        notice(
            f"no text has its hash in the lowest {config.val_fraction:g} of all, which in parts "
            "alone decides, so nothing is held out: no val shards"
        )


def _is_published(request: Request) -> bool:
    """Whether the output is that of this request: its `--finish` was repeated."""
    manifest = read_manifest(request.config.output / MANIFEST)
    asked = request.asked
    return manifest is not None and (
        manifest["options"] == shareable(asked["options"])
        and manifest["sources"] == asked["sources"]
        and manifest["versions"] == asked["versions"]
    )


def in_parts(config: PreprocessConfig) -> Summary:
    """Make all parts, here or on a cluster, and finish; or finish alone, if `config` says so.

    Raises:
        UserError: as the steps; or `config` asks for a step that has no summary.
    """
    if config.prepare or config.part is not None:
        raise UserError(
            "one step of a run in parts gives no summary; call prepare or make_part of "
            "light_llm.preprocess.parts"
        )
    if config.cluster is not None:
        from light_llm.preprocess.cluster import on_cluster

        return on_cluster(config)
    request = request_of(config)
    if not config.finish:
        plan = prepare(request)
        if plan is None:
            return summary_of_output(config, NAMES, [request.corpus])
        for part in range(len(plan.parts)):
            notice(f"part {part} of {config.parts}")
            make_part(request, part)
    return finish(request)
