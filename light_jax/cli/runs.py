"""llm-runs: runs on this disk, listed, compared, cleaned. Imports the rest lazily; no JAX."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from light_llm.cli import runner
from light_llm.printing import say, shown, tell

app = runner.new_app()

COMMANDS = ("list", "compare", "clean")
FOLDER = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        help="A run's checkpoint_dir, or a folder of some.",
        callback=runner.user_path,
    ),
]


@app.callback()
def llm_runs(version: Annotated[bool, runner.version_option()] = False) -> None:
    """Runs below a folder: what they are, how they differ, what can be deleted.

    `llm-runs DIR` is `llm-runs list DIR`."""


@app.command("list")
def list_runs(
    directory: FOLDER = Path("checkpoints"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the runs and their tags: step, validation loss, age, size, complete or not."""
    from light_jax.runs.folder import find_runs
    from light_jax.runs.listing import listing
    from light_jax.runs.terminal import as_json as entry
    from light_jax.runs.terminal import print_listing

    runs = [listing(path) for path in find_runs(directory)]
    if as_json:
        print(shown(json.dumps([entry(run) for run in runs], indent=2)))
    else:
        print_listing(runs)


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Folders of runs, two or more.",
            callback=runner.user_path,
        ),
    ],
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write a page of HTML there.", callback=runner.user_path
        ),
    ] = None,
) -> None:
    """Show the settings that differ and the curves over each other."""
    from light_jax.runs.compare import print_comparison, write_page
    from light_jax.runs.folder import find_runs
    from light_jax.runs.listing import listing
    from light_llm.errors import UserError

    found = list(dict.fromkeys(path for given in runs for path in find_runs(given)))
    if len(found) < 2:
        raise UserError(
            f"llm-runs compare: {found[0]} is the only run that was named; name two or more"
        )
    listed = [listing(path) for path in found]
    print_comparison(listed)
    if html is not None:
        write_page(html, listed)
        tell(f"written to {html}")


@app.command()
def clean(
    directory: FOLDER,
    keep: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Delete step tags but the newest N of a run."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only show.")] = False,
) -> None:
    """Show what can be deleted, or delete it: tags in parts, what crashes left, older step tags.

    `best` and `final` always stay, and so does what another run or person put there."""
    from light_jax.reporting.units import size
    from light_jax.runs import clean as cleaning
    from light_jax.runs.folder import find_runs

    act = cleaning.clean if yes else cleaning.plan
    verb, items = "deleted" if yes else "would delete", list[cleaning.Item]()
    for path in find_runs(directory):
        for item in act(path, keep):  # told at once: the next folder may be in use
            say(f"{verb}  {item.path}  {size(item.size)}  {item.why}")
            items.append(item)
    total = size(sum(item.size for item in items))
    if not items:
        say("nothing to delete")
    elif not yes:
        say(f"{total} in all; add --yes to delete")
    else:
        say(f"{total} in all")


def main() -> None:
    given = sys.argv[1:]
    if not given or given[0] == "--json" or not (given[0] in COMMANDS or given[0].startswith("-")):
        sys.argv.insert(1, "list")
    runner.run("llm-runs", app, ended_by=[signal.SIGINT])
