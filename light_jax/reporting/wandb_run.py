"""Weights & Biases: the lines of metrics.jsonl under the same names, by process 0."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from light_jax.config import TrainingConfig
from light_llm.errors import UserError


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

        with _told():
            self._run = wandb.init(
                project=cfg.wandb_project,
                name=cfg.wandb_run_name,
                id=run_id,
                resume="allow",
                config=cfg.model_dump(mode="json"),
            )
            self.id: str = self._run.id
            # A resumed run trains some steps again: W&B's own step could not go back to them.
            self._run.define_metric("*", step_metric="step")

    def write(self, values: dict[str, Any]) -> None:
        with _told():
            self._run.log(values)

    def close(self) -> None:
        with _told():
            self._run.finish()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Around a call of wandb, which raises what its service, its network or its disk does.

    Raises:
        UserError: whatever it was: the run is to keep what it trained.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"Weights & Biases failed ({type(error).__name__}: {reason}); continue with "
            "--resume auto, or without it by use_wandb: false"
        ) from None
