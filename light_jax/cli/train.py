"""llm-train: the command line. Imports the rest lazily, so that --help is instant."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from light_llm.errors import NonFinite, UserError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def command(
    config: Annotated[Path, typer.Argument(help="Config file, .yaml or .json.")],
    resume: Annotated[
        str | None,
        typer.Option(help="Checkpoint prefix (checkpoints/my-run/step0005000), or 'auto'."),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(help="Run the step of a folder nonfinite-stepN once more; train nothing."),
    ] = None,
) -> None:
    """Train a language model as CONFIG says. Every hyperparameter is in the file."""
    from light_jax.parallel.hosts import initialize

    if replay is not None and resume is not None:
        raise UserError("--replay and --resume are two things to do; give one of them")
    initialize()  # before anything touches a device
    from light_jax.training.loop import run_config
    from light_jax.training.replay import replay as run_again

    try:
        if replay is not None:
            raise typer.Exit(run_again(config, replay))
        raise typer.Exit(run_config(config, resume))
    except NonFinite as error:
        print(f"llm-train: {error}", file=sys.stderr)
        raise typer.Exit(3) from None


def main() -> None:
    # Until training listens for it (Stopper), Ctrl-C just ends the process: a KeyboardInterrupt in
    # the midst of an import or a compilation is lost, or crashes.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    warnings.showwarning = _show_warning
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs what it raises, with traces
    try:
        app()
    except UserError as error:
        print(f"llm-train: {error}", file=sys.stderr)
        sys.exit(2)


def _show_warning(message, category, filename, lineno, file=None, line=None):  # type: ignore[no-untyped-def]
    print(f"warning: {message}", file=sys.stderr)
