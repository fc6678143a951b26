"""llm-train: the command line. Imports the rest lazily, so that --help is instant."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Annotated

import typer

from light_llm.cli import runner
from light_llm.errors import UserError

app = runner.new_app()


@app.command()
def command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Config file, .yaml or .json.")],
    resume: Annotated[
        str | None,
        typer.Option(help="Checkpoint prefix (checkpoints/my-run/step0005000), or 'auto'."),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(help="Run the step of a folder nonfinite-stepN once more; train nothing."),
    ] = None,
    version: Annotated[bool, runner.version_option(devices=True)] = False,
) -> int:
    """Train a language model as CONFIG says. Every hyperparameter is in the file."""
    if replay is None:
        from light_jax.training.api import train

        stopped_by = train(config, resume).stopped_by
        return 0 if stopped_by is None else 128 + stopped_by
    if resume is not None:
        raise UserError("--replay and --resume exclude each other; give one of them")
    from light_jax.parallel.cache import keep_compiled
    from light_jax.parallel.hosts import initialize

    initialize()  # before anything touches a device
    keep_compiled()
    from light_jax.training.replay import replay as run_again

    return run_again(config, replay)


def main() -> None:
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs what it raises, with traces
    # Until training listens for it (Stopper), Ctrl-C just ends the process: a KeyboardInterrupt in
    # the midst of an import or a compilation is lost, or crashes.
    runner.run("llm-train", app, ended_by=[signal.SIGINT])
