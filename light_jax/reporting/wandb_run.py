"""Weights & Biases: the lines of metrics.jsonl under the same names, by process 0."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from light_jax.config import TrainingConfig
from light_jax.reporting.tracking import Sample, beginning, lost
from light_jax.state import Run
from light_llm.errors import UserError, one_line

SAME_NUMBERS = (
    "mesh.",
    "save_every:",
    "keep_last_n:",
    "num_workers:",
    "max_time:",
    "spike_threshold:",
    "compile_model:",
)
"""How the lines of `Run.changes` begin after which a step has the numbers that it had before, but
for rounding."""
TITLE = "Weights & Biases"
LAST_UPLOAD = 60.0
"""Seconds that the end of a run waits for W&B, which by itself tries for as long as it takes."""


def setting(cfg: TrainingConfig) -> str:
    """The one that asks for it, as it stands in the config."""
    return "use_wandb=True" if cfg.use_wandb else "tracker='wandb'"


def check_wandb(cfg: TrainingConfig) -> None:
    """Refuse, before training, a run whose numbers could not be logged.

    Raises:
        UserError: wandb is not installed, nobody is logged in (offline mode needs no login), or
            wandb refuses its settings or gets no answer.
    """
    off = "set use_wandb to false" if cfg.use_wandb else "leave tracker out"
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"{setting(cfg)} needs the package wandb; run `pip install wandb`, or {off}"
        ) from None
    try:
        known = wandb.setup().settings.mode != "online" or wandb.login(prompt=False)
    except Exception as error:  # a key, a setting or a server that is refused, no connection
        raise UserError(
            f"{setting(cfg)} but Weights & Biases refuses ({type(error).__name__}: "
            f"{one_line(error, 300)}); mend that, log to disk with WANDB_MODE=offline, or {off}"
        ) from None
    if not known:
        raise UserError(
            f"{setting(cfg)} but nobody is logged in to Weights & Biases; run `wandb login`, set "
            f"WANDB_API_KEY, log to disk with WANDB_MODE=offline, or {off}"
        )


class WandbRun:
    """One run; the id in the state of the run continues that one, without it a new one begins.

    W&B's history cannot be cut back as metrics.jsonl is. So of the steps that a resumed run trains
    again, those that the server has are not sent a second time, unless a setting changed that gives
    them other numbers. Offline nothing is known of the server: all are sent.
    """

    def __init__(self, run: Run, directory: Path) -> None:
        import wandb

        cfg, host = run.cfg, run.host
        continued = host.wandb_run_id is not None
        with beginning(TITLE, "use_wandb: false" if cfg.use_wandb else "tracker: null"):
            ends: dict[str, Any] = {"finish_timeout_raises": True}
            if "WANDB_FINISH_TIMEOUT" not in os.environ:
                ends["finish_timeout"] = LAST_UPLOAD
            self._run = wandb.init(
                project=cfg.wandb_project,
                name=cfg.wandb_run_name,
                id=host.wandb_run_id,
                resume="allow",
                config=cfg.model_dump(mode="json"),
                settings=wandb.Settings(**ends),
            )
            host.wandb_run_id = self._run.id
            # A resumed run trains some steps again, and W&B's own step cannot go back.
            self._run.define_metric("*", step_metric="step")
            same = all(change.startswith(SAME_NUMBERS) for change in run.changes)
            self._there = dict(self._run.summary) if continued and same else {}
            local = os.path.relpath(Path(self._run.dir).parent)
            sent = shlex.join(["wandb", "sync", "--include-online", local])
            self._later = f", and `{sent}` sends what W&B has not got"

    def _has(self, values: dict[str, Any]) -> bool:
        """Whether an earlier start sent this line: they came in order, up to the summary's."""
        step, last = values["step"], self._there.get("step", 0)
        if step != last:
            return step < last
        return "val/loss" not in values or values["val/loss"] == self._there.get("val/loss")

    def write(self, values: dict[str, Any]) -> None:
        if self._has(values):
            return
        with lost(TITLE):
            self._run.log(values)

    def show(self, step: int, samples: list[Sample]) -> None:
        import wandb

        if step < self._there.get("step", 0):
            return
        with lost(TITLE):
            table = wandb.Table(columns=["step", "prompt", "text"])
            for sample in samples:
                table.add_data(step, sample.prompt, sample.text)
            self._run.log({"step": step, "samples": table})

    def close(self) -> None:
        with lost(TITLE, self._later):
            self._run.finish()
