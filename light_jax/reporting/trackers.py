"""TensorBoard and trackio, and the table of all trackers."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from light_jax.config import TrainingConfig
from light_jax.reporting.tracking import Sample, Tracker, beginning, lost, numbers
from light_jax.reporting.wandb_run import WandbRun, check_wandb
from light_jax.state import Run
from light_llm.errors import UserError

TENSORBOARD = "tensorboard"
"""The folder in checkpoint_dir."""


class TensorBoardRun:
    """Event files in DIR/tensorboard. What an earlier start wrote after the resumed step is hidden
    from the curves."""

    def __init__(self, run: Run, directory: Path) -> None:
        from tensorboardX import SummaryWriter

        cfg, step = run.cfg, int(run.state.step)
        off = "use_tensorboard: false" if cfg.use_tensorboard else "tracker: null"
        with beginning("TensorBoard", off):
            first = step if run.host.evaluation_due else step + 1
            self._writer = SummaryWriter(
                str(directory / TENSORBOARD), purge_step=first if step else None
            )
            self._writer.add_text("config", _fenced(json.dumps(cfg.model_dump(mode="json"))), step)

    def write(self, values: dict[str, Any]) -> None:
        with lost("TensorBoard"):
            for name, value in numbers(values).items():
                self._writer.add_scalar(name, value, values["step"], values.get("time"))
            self._writer.flush()

    def show(self, step: int, samples: list[Sample]) -> None:
        with lost("TensorBoard"):
            for number, sample in enumerate(samples, 1):
                self._writer.add_text(
                    f"samples/{number}", _fenced(sample.prompt + sample.text), step
                )

    def close(self) -> None:
        with lost("TensorBoard"):
            self._writer.close()


class TrackioRun:
    """One run, by its name: the name in the state of the run continues that one."""

    def __init__(self, run: Run, directory: Path) -> None:
        import trackio

        cfg, host = run.cfg, run.host
        with beginning("trackio", "tracker: null"), _stdout_to_stderr():
            self._trackio = trackio
            self._run = trackio.init(
                project=cfg.wandb_project,
                name=host.trackio_run or cfg.wandb_run_name or f"run-{host.run[:8]}",
                resume="allow" if host.trackio_run else "never",
                config=cfg.model_dump(mode="json"),
                embed=False,
            )
            host.trackio_run = self._run.name

    def write(self, values: dict[str, Any]) -> None:
        with lost("trackio"):
            self._trackio.log(numbers(values), step=values["step"])

    def show(self, step: int, samples: list[Sample]) -> None:
        texts = {f"samples/{number}": s.prompt + s.text for number, s in enumerate(samples, 1)}
        with lost("trackio"):
            self._trackio.log(texts, step=step)

    def close(self) -> None:
        with lost("trackio"), _stdout_to_stderr():
            self._trackio.finish()


def _stdout_to_stderr() -> contextlib.AbstractContextManager[Any]:
    """trackio greets on stdout, where no program looks for it."""
    import sys

    return contextlib.redirect_stdout(sys.stderr)


def _fenced(text: str) -> str:
    """Markdown that shows a text as it is."""
    return "    " + text.replace("\n", "\n    ")


TRACKERS: dict[str, Callable[[Run, Path], Tracker]] = {
    "wandb": WandbRun,
    "tensorboard": TensorBoardRun,
    "trackio": TrackioRun,
}


def check_tracker(name: str, cfg: TrainingConfig) -> None:
    """
    Raises:
        UserError: its package is not installed, or nobody is logged in.
    """
    if name == "wandb":
        check_wandb(cfg)
        return
    package = {"tensorboard": "tensorboardX", "trackio": "trackio"}[name]
    by_switch = name == "tensorboard" and cfg.use_tensorboard
    setting = "use_tensorboard=True" if by_switch else f"tracker={name!r}"
    try:
        importlib.import_module(package)
    except ImportError:
        raise UserError(
            f"{setting} needs the package {package}; run `pip install {package}`, or "
            f"{'set use_tensorboard to false' if by_switch else 'leave tracker out'}"
        ) from None


def key_of(name: str, cfg: TrainingConfig) -> str:
    """The key of the config that asks for a tracker."""
    return f"use_{name}" if getattr(cfg, f"use_{name}", False) else "tracker"
