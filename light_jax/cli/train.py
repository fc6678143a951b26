"""llm-train: the command line. Imports the rest lazily, so that --help is instant."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from light_jax.cli.misplaced import misplaced
from light_llm.cli import runner
from light_llm.errors import UserError
from light_llm.printing import say, shown

app = runner.new_app()


@app.command()
def command(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG",
            help="Config file, .yaml or .json; `llm-train init` prints one.",
            callback=runner.user_path,
        ),
    ],
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="PREFIX",
            help="A checkpoint (checkpoints/my-run/step0005000), or auto: the newest.",
            callback=runner.user_path,
        ),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Run the step of a folder nonfinite-stepN once more; train nothing.",
            callback=runner.user_path,
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Say whether it would run; train and write nothing.")
    ] = False,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With --check: the devices to compile for, such as v5e-8.  [default: here]",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --check: print one JSON object.")
    ] = False,
    print_config: Annotated[
        bool,
        typer.Option("--print-config", help="Print CONFIG with every key that it leaves out."),
    ] = False,
    version: Annotated[bool, runner.version_option(devices=True)] = False,
) -> int:
    """Train a language model as CONFIG says. Every hyperparameter is in the file."""
    if print_config:
        if check or replay is not None or resume is not None or devices is not None or as_json:
            raise UserError("--print-config stands alone with CONFIG; leave the other options out")
        return _print_config(config)
    if check:
        if replay is not None:
            raise UserError("--check and --replay exclude each other; give one of them")
        return _check(config, resume, devices, as_json)
    if devices is not None or as_json:
        flag = "--json" if devices is None else "--devices"
        raise UserError(f"{flag} belongs to --check, which trains nothing; add it, or drop {flag}")
    if replay is None:
        from light_jax.training.api import train

        stopped_by = train(config, resume).stopped_by
        return 0 if stopped_by is None else 128 + stopped_by
    if resume is not None:
        raise UserError("--replay and --resume exclude each other; give one of them")
    from light_jax.config import load_config
    from light_jax.parallel.cluster import one_of_several

    if not one_of_several():
        load_config(config)  # a mistyped key is told before JAX is imported, which takes a second
    from light_jax.parallel.cache import keep_compiled
    from light_jax.parallel.hosts import initialize, taking_part

    initialize()  # before anything touches a device
    keep_compiled()
    from light_jax.training.replay import replay as run_again

    with taking_part():
        return run_again(config, replay)


def _print_config(config: Path) -> int:
    """Print YAML that is the same config, whatever the file extends or leaves out."""
    from light_jax.config import load_config
    from light_llm.configtext import dump

    print(shown(dump(load_config(config).model_dump(mode="json"))), end="")
    return 0


def _check(config: Path, resume: str | None, devices: str | None, as_json: bool) -> int:
    """Print what a check finds. Returns 0 if the run would run, else 2."""
    from light_jax.reporting.findings import HERE, lines
    from light_jax.training.api import check

    name = HERE if devices is None else devices

    def progress(what: str) -> contextlib.AbstractContextManager[None]:
        from light_jax.reporting.console import Reporter  # when devices are chosen: it asks them

        return Reporter().compiling(f"for {name}, {what}", keep=True)

    report = check(config, resume, name, progress=progress)
    if _speaks():
        if as_json:
            print(shown(json.dumps(report.as_json())))
        else:
            for line in lines(report):
                say(line)
    return 0 if report.ok else 2


def _speaks() -> bool:
    """Whether this process prints: alone, or the first of several."""
    from light_jax.parallel.cluster import one_of_several

    if not one_of_several():
        return True
    from light_jax.parallel.hosts import is_main

    return is_main()


def main() -> None:
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs what it raises, with traces
    if sys.argv[1:2] == ["init"]:  # no config file has this name, since it has an ending
        from light_jax.cli import init

        runner.run("llm-train init", init.app, ended_by=[signal.SIGINT, signal.SIGPIPE])
    # Until training listens for it (Stopper), Ctrl-C just ends the process: a KeyboardInterrupt in
    # the midst of an import or a compilation is lost, or crashes.
    runner.run("llm-train", app, ended_by=[signal.SIGINT], misplaced=misplaced)
