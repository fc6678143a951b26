"""Weights & Biases: the lines of metrics.jsonl under the same names, by process 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from light_jax.config import TrainingConfig
from light_jax.reporting.tracking import Sample, tracker_faults
from light_jax.state import Run
from light_llm.errors import UserError


def setting(cfg: TrainingConfig) -> str:
    """The one that asks for it, as it stands in the config."""
    return "use_wandb=True" if cfg.use_wandb else "tracker='wandb'"


def check_wandb(cfg: TrainingConfig) -> None:
    """Refuse, before training, a run whose numbers could not be logged.

    Raises:
        UserError: wandb is not installed, or nobody is logged in (offline mode needs no login).
    """
    off = "set use_wandb to false" if cfg.use_wandb else "leave tracker out"
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"{setting(cfg)} needs the package wandb; run `pip install wandb`, or {off}"
        ) from None
    if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
        raise UserError(
            f"{setting(cfg)} but nobody is logged in to Weights & Biases; run `wandb login`, set "
            f"WANDB_API_KEY, log to disk with WANDB_MODE=offline, or {off}"
        )


class WandbRun:
    """One run; the id in the state of the run continues that one, without it a new one begins."""

    def __init__(self, run: Run, directory: Path) -> None:
        import wandb

        cfg, host = run.cfg, run.host
        self._without = "use_wandb: false" if cfg.use_wandb else "tracker: null"
        with self._faults():
            self._run = wandb.init(
                project=cfg.wandb_project,
                name=cfg.wandb_run_name,
                id=host.wandb_run_id,
                resume="allow",
                config=cfg.model_dump(mode="json"),
            )
            host.wandb_run_id = self._run.id
            # A resumed run trains some steps again, and W&B's own step cannot go back.
            self._run.define_metric("*", step_metric="step")

    def write(self, values: dict[str, Any]) -> None:
        with self._faults():
            self._run.log(values)

    def show(self, step: int, samples: list[Sample]) -> None:
        import wandb

        with self._faults():
            table = wandb.Table(columns=["step", "prompt", "text"])
            for sample in samples:
                table.add_data(step, sample.prompt, sample.text)
            self._run.log({"step": step, "samples": table})

    def close(self) -> None:
        with self._faults():
            self._run.finish()

    def _faults(self):  # type: ignore[no-untyped-def]
        return tracker_faults("Weights & Biases", self._without)
