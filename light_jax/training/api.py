"""`light_jax.train`: a training run, started from Python.

JAX and what needs it are imported once the config is found to be right.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

from light_jax.config import CLUSTER_TIMEOUT, TrainingConfig, load_config
from light_jax.parallel.cluster import one_of_several
from light_jax.reporting.findings import HERE, Report, read
from light_llm.checkpoint import layout
from light_llm.errors import UserError
from light_llm.lazy import importing
from light_llm.printing import waiting

if TYPE_CHECKING:
    from light_jax.training.fit import Progress


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run of `train` ended."""

    config: TrainingConfig
    stopped_by: int | None
    """The signal that stopped it, None if it reached num_steps. `resume="auto"` continues it."""

    @property
    def directory(self) -> Path:
        return Path(self.config.checkpoint_dir)

    @property
    def best(self) -> Path | None:
        """The checkpoint with the least validation loss, a prefix for `load_transformer`."""
        return self._tag("best")

    @property
    def final(self) -> Path | None:
        """The checkpoint after the last step; None before it."""
        return self._tag("final")

    def _tag(self, name: str) -> Path | None:
        return self.directory / name if name in layout.tags(self.directory) else None


def check(
    config: str | Path,
    resume: str | None = None,
    devices: str = HERE,
    *,
    progress: Progress | None = None,
) -> Report:
    """Say whether `train` would run, with every reason at once; train and write nothing.

    As `llm-train CONFIG --check [--resume …] [--devices NAME]`, which prints the report.

    Args:
        devices: `here`, or the name of devices that are not here, such as v5e-8 or h100-1.
        progress: is told what is compiled, and for how long.

    Returns:
        What was found, and what the compiled step takes. Wrong input is a finding, not an error.
        Of a config with a mistake nothing else is known, not even which devices are here.
    """
    if devices == HERE and not one_of_several():  # others would wait for this one to join them
        cfg, findings = read(config)
        if cfg is None:
            return Report(tuple(findings))
    from light_jax.parallel.hosts import taking_part
    from light_jax.training.check import check as run_checks

    with taking_part():
        return run_checks(config, resume, devices, progress)


def train(config: str | Path, resume: str | None = None) -> Result:
    """Train as `llm-train CONFIG [--resume …]` does, and print what it prints.

    To be called from the main thread: SIGTERM, SIGHUP and Ctrl-C commit a checkpoint and end the
    run. Before its first step they do what they did before the call: by default SIGTERM ends the
    process and Ctrl-C raises KeyboardInterrupt.

    Args:
        config: a config file, not a TrainingConfig: the run keeps a copy of the file, and names it
            in the commands that it prints.
        resume: a checkpoint (checkpoints/my-run/step0005000), or "auto" for the newest complete
            one of the config's checkpoint_dir, if there is any.

    Raises:
        UserError: the config, its data or the checkpoint cannot be used.
        NonFinite: the loss or the gradients stopped being finite; the last checkpoint is intact.
    """
    started = time.monotonic()
    cfg, wrong = _read(config)
    with waiting("starting…"):
        with importing():
            import jax

            from light_jax.parallel.cache import keep_compiled
            from light_jax.parallel.hosts import initialize, taking_part
            from light_jax.training.loop import run_config
        if not jax.distributed.is_initialized():
            # before anything touches a device
            initialize(CLUSTER_TIMEOUT if cfg is None else cfg.cluster_timeout)
    with taking_part():
        if cfg is None:
            raise wrong or UserError(f"{config}: cannot be read")
        keep_compiled()
        code = run_config(config, resume, cfg, started)
    return Result(cfg, code - 128 if code else None)


def _read(config: str | Path) -> tuple[TrainingConfig | None, UserError | None]:
    """The config, or what is wrong with it.

    One of several processes joins the others first, and tells them then: they wait for it.

    Raises:
        UserError: it is wrong, and there are no others.
    """
    try:
        return load_config(config), None
    except UserError as error:
        if not one_of_several():
            raise
        return None, error
