"""What the steps of a run in parts are asked for, and whether that was prepared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from light_llm.errors import UserError
from light_llm.preprocess.config import PreprocessConfig
from light_llm.preprocess.corpus import FileCorpus
from light_llm.preprocess.manifest import versions
from light_llm.preprocess.output import STAGE, check_copy, check_place
from light_llm.preprocess.pipeline import open_corpora, row_text, set_threads
from light_llm.preprocess.plan import Plan
from light_llm.preprocess.progress import Progress
from light_llm.preprocess.resume import changes
from light_llm.preprocess.stage import MOVES

NAMES = ("",)
"""The one corpus of a run in parts: the files of its input."""


@dataclass(frozen=True)
class Request:
    """What a step is asked for, and the input as it found it."""

    config: PreprocessConfig
    corpus: FileCorpus
    asked: dict[str, Any]
    """As a run's, without the tokenizer."""

    def check(self, plan: Plan) -> None:
        """
        Raises:
            UserError: the plan is that of another request, or of another input.
        """
        known = {"tokenizer": plan.asked["tokenizer"]}
        changed = changes(plan.asked, self.asked | known)
        if changed:
            raise UserError(
                f"--output {self.config.output}: --prepare was asked for something else: "
                f"{'; '.join(changed)}. Repeat its options, or prepare again with --overwrite, "
                "which discards the parts that are made"
            )


def request_of(config: PreprocessConfig) -> Request:
    """Look through the input of a run in parts.

    Raises:
        UserError: it cannot be read, or nothing can be written where the run writes.
    """
    set_threads(config.workers)
    check_place(config.output)
    if config.save_tokenizer is not None:
        check_copy(config.save_tokenizer, config.output, NAMES)
    rows, adapter = row_text(config)
    with Progress("looking through the input"):
        (corpus,) = open_corpora(config, rows)
        assert isinstance(corpus, FileCorpus)
        sources = {corpus.name: corpus.identity()}
    options = config.decisive()
    asked = {"options": options, "sources": sources, "adapter": adapter, "versions": versions()}
    return Request(config, corpus, asked)


def check_prepared(config: PreprocessConfig, plan: Plan | None) -> Plan:
    if (config.output.absolute() / STAGE / MOVES).exists():
        raise UserError(
            f"--output {config.output}: was stopped while its shards were moved into place; "
            "repeat --finish"
        )
    if plan is None:
        raise UserError(
            f"--output {config.output}: nothing is prepared there (or it is finished); run the "
            f"same command with --parts {config.parts} --prepare first"
        )
    return plan
