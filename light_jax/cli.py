"""llm-train: the command line. Imports the rest lazily, so that --help is instant."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from light_llm.errors import UserError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def command(
    config: Annotated[Path, typer.Argument(help="Config file, .yaml or .json.")],
    resume: Annotated[
        str | None,
        typer.Option(help="Checkpoint prefix (checkpoints/my-run/step0005000), or 'auto'."),
    ] = None,
) -> None:
    """Train a language model as CONFIG says. Every hyperparameter is in the file."""
    from light_jax.config import load_config
    from light_jax.distributed import initialize

    cfg = load_config(config)
    initialize()
    from light_jax.console import Reporter
    from light_jax.run import compile_steps, prepare
    from light_jax.summary import describe
    from light_jax.trainer import NonFinite, train

    with Reporter() as reporter:
        run = prepare(cfg, resume)
        for line in describe(run):
            reporter.line(line)
        if int(run.state.step) >= cfg.num_steps:
            reporter.line(f"nothing to do: step {int(run.state.step)} of {cfg.num_steps} is done")
            return
        compile_steps(run)
        if run.memory is not None:
            from light_jax.console import size

            reporter.line(f"memory      {size(run.memory)} per device for the compiled step")
        try:
            code = train(run, config, reporter)
        except NonFinite as error:
            print(f"llm-train: {error}", file=sys.stderr)
            code = 3
    raise typer.Exit(code)


def main() -> None:
    warnings.showwarning = _show_warning
    try:
        app()
    except UserError as error:
        print(f"llm-train: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _show_warning(message, category, filename, lineno, file=None, line=None):  # type: ignore[no-untyped-def]
    print(f"warning: {message}", file=sys.stderr)
