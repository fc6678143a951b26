"""A run in parts that was prepared: whether another run may go on with it, or must discard it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from light_llm.errors import UserError
from light_llm.files.disk import remove
from light_llm.preprocess.config import PreprocessConfig
from light_llm.preprocess.copies import Copies
from light_llm.preprocess.manifest import TOKENIZER
from light_llm.preprocess.notices import counted, notice
from light_llm.preprocess.plan import Plan, folder_of, read_plan
from light_llm.preprocess.resume import changes, check_tokenizer
from light_llm.preprocess.stage import COPIES, JOURNAL, NEW, PARTS, PLAN, Damaged
from light_llm.preprocess.watch import read_seen


def kept_plan(config: PreprocessConfig, stage: Path, asked: dict[str, Any]) -> Plan | None:
    """The plan that is there, if it is the one for `asked`; None: there is none, or it was
    discarded.

    Args:
        stage: locked, so that no part is being made.

    Raises:
        UserError: another run was prepared, or its files are damaged, and `config` does not say to
            overwrite.
    """
    try:
        plan = read_plan(stage)
        if plan is None:
            return None
        if plan.asked == asked:
            check_tokenizer(stage / NEW / TOKENIZER, plan.tokenizer)
            if plan.copies is not None:
                Copies(stage / COPIES, plan.copies).check()
            return plan
        made = sum(read_seen(folder_of(stage, part)).share == 1 for part in range(len(plan.parts)))
        there = (
            f"a run in {counted(len(plan.parts), 'part')} that was prepared ({made} of them made)"
        )
        if not config.overwrite:
            raise UserError(
                f"--output {config.output}: holds {there}, and this run differs: "
                f"{'; '.join(changes(plan.asked, asked))}. Go on with that run as it was, or "
                "discard it with --overwrite"
            )
    except Damaged as error:
        if not config.overwrite:
            raise
        there = str(error)
    notice(f"what was prepared for a run in parts is discarded ({there})")
    (stage / PLAN).unlink()  # first: without it nothing else counts
    (stage / JOURNAL).unlink(missing_ok=True)
    for name in (PARTS, NEW, COPIES):
        remove(stage / name)
    return None
