"""Weights & Biases: the lines of metrics.jsonl under the same names, by process 0."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from light_jax.config import TrainingConfig
from light_llm.errors import UserError, one_line


def check_wandb() -> None:
    """Refuse, before training, a run whose numbers could not be logged.

    Raises:
        UserError: wandb is not installed, or nobody is logged in (offline mode needs no login).
    """
    try:
        import wandb
    except ImportError:
        raise UserError(
            "use_wandb=True needs the package wandb; run `pip install wandb`, or set it to false"
        ) from None
    if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
        raise UserError(
            "use_wandb=True but nobody is logged in to Weights & Biases; run `wandb login`, set "
            "WANDB_API_KEY, log to disk with WANDB_MODE=offline, or set use_wandb to false"
        )


class WandbRun:
    """One run; `run_id` continues the run of that id, None starts a new one."""

    def __init__(self, cfg: TrainingConfig, run_id: str | None) -> None:
        import wandb

        with _wandb_faults():
            self._run = wandb.init(
                project=cfg.wandb_project,
                name=cfg.wandb_run_name,
                id=run_id,
                resume="allow",
                config=cfg.model_dump(mode="json"),
            )
            self.id: str = self._run.id
            # A resumed run trains some steps again, and W&B's own step cannot go back.
            self._run.define_metric("*", step_metric="step")

    def write(self, values: dict[str, Any]) -> None:
        with _wandb_faults():
            self._run.log(values)

    def close(self) -> None:
        with _wandb_faults():
            self._run.finish()


@contextlib.contextmanager
def _wandb_faults() -> Iterator[None]:
    """Raise any error of wandb, its service, network or disk, as a UserError.

    Raises:
        UserError: so that the run still commits what it trained.
    """
    try:
        yield
    except Exception as error:
        reason = one_line(error, 300)
        raise UserError(
            f"Weights & Biases failed ({type(error).__name__}: {reason}); continue with "
            "--resume auto, or without it by use_wandb: false"
        ) from None
