"""Several runs beside each other: settings that differ, curves over each other, one page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from light_jax.reporting.units import count, perplexity_form
from light_jax.runs import html
from light_jax.runs.draw import Line, Points, chart, reduced, smoothed
from light_jax.runs.facts import flat
from light_jax.runs.listing import RunListing
from light_jax.runs.report import loss_form, number, plain, short
from light_jax.runs.terminal import print_plot, print_table
from light_llm.files.disk import write_atomically
from light_llm.printing import say

OF_THE_FOLDER = ("checkpoint_dir", "wandb_run_name")  # differs always, and says nothing


def names_of(runs: Sequence[RunListing]) -> list[str]:
    """The paths without what all have in common."""
    paths = [str(run.path.absolute()) for run in runs]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, common) for path in paths]


def differences(runs: Sequence[RunListing]) -> list[tuple[str, list[Any]]]:
    """(key, its value in each run) of the settings that are not the same in all; None is absent."""
    each = [dict(flat(run.settings)) for run in runs]
    keys = dict.fromkeys(key for settings in each for key in settings)
    rows = [(key, [settings.get(key) for settings in each]) for key in keys]
    return [
        (key, values)
        for key, values in rows
        if key not in OF_THE_FOLDER and len({plain(value) for value in values}) > 1
    ]


def by_tokens(runs: Sequence[RunListing]) -> bool:
    """Whether steps have different numbers of tokens, so that tokens make the fair axis."""
    sizes = {round(run.history.tokens_per_step) for run in runs}
    return len(sizes) > 1 and 0 not in sizes


def lines_of(runs: Sequence[RunListing], curve: str, *, smooth: bool = False) -> list[Line]:
    """The same curve of each run."""
    lines, tokens = [], by_tokens(runs)
    for i, (run, name) in enumerate(zip(runs, names_of(runs), strict=True)):
        values = run.history.curve(curve)
        points: Points = (smoothed(values) if smooth else []) or reduced(values)
        scale = run.history.tokens_per_step if tokens else 1.0
        lines.append(Line(name, [(x * scale, y) for x, y in points], i + 1))
    return lines


def summary(runs: Sequence[RunListing]) -> list[tuple[str, ...]]:
    """A row for each run: name, step, tokens, best validation loss, its step, last train loss."""
    rows: list[tuple[str, ...]] = []
    for run, name in zip(runs, names_of(runs), strict=True):
        loss = run.history.curve("train/loss")
        means = smoothed(loss)
        last = means[-1][1] if means else loss.last
        rows.append(
            (
                name,
                f"{run.step:,}",
                count(run.tokens),
                "–" if run.best is None else f"{run.best[1]:.4f}",
                "–" if run.best is None else f"{run.best[0]:,}",
                "–" if last is None else f"{last:.4f}",
            )
        )
    return rows


HEAD = ("run", "step", "tokens", "best val loss", "at step", "train loss")


def print_comparison(runs: Sequence[RunListing]) -> None:
    names = names_of(runs)
    print_table(HEAD, summary(runs), " nnnnn")
    rows = [(key, *map(_told, values)) for key, values in differences(runs)]
    say()
    if rows:
        print_table(("differing settings", *names), rows)
    else:
        say("no setting differs")
    what = "tokens" if by_tokens(runs) else "steps"
    for title, curve in (("validation loss", "val/loss"), ("train loss, smoothed", "train/loss")):
        lines = lines_of(runs, curve, smooth=curve == "train/loss")
        if any(line.points for line in lines):
            say()
            print_plot(f"{title} over {what}", lines, number, short)


def _told(value: Any) -> str:
    return "–" if value is None else plain(value)


def page(runs: Sequence[RunListing]) -> str:
    """The comparison as one page that stands alone."""
    names = names_of(runs)
    x_name = "tokens" if by_tokens(runs) else "step"
    charts = []
    for title, curve, log in (
        ("Validation loss", "val/loss", None),
        ("Train loss, smoothed", "train/loss", None),
        ("Learning rate", "train/lr", False),
        ("Gradient norm, smoothed", "train/grad_norm", None),
        ("Tokens per second, smoothed", "train/tokens_per_second", False),
    ):
        lines = lines_of(runs, curve, smooth="smoothed" in title)
        lines = [_recoloured(line) for line in lines]
        form = short if "Tokens" in title else number
        is_loss = "loss" in title
        drawn = chart(
            title,
            lines,
            form=form,
            x_form=short,
            last_form=loss_form if is_loss else None,
            x_name=x_name,
            log=log,
            tall=is_loss,
        )
        charts.append(drawn)
    rows = [
        (
            f'<i class="key c{_colour(i)}"></i>{html.text(row[0])}',
            *map(html.text, row[1:4]),
            "–" if run.best is None else perplexity_form(run.best[1]),
            *map(html.text, row[4:]),
        )
        for i, (row, run) in enumerate(zip(summary(runs), runs, strict=True), 1)
    ]
    head = (*HEAD[:4], "perplexity", *HEAD[4:])
    settings = [
        (f"<code>{html.text(key)}</code>", *(f"<code>{html.text(_told(v))}</code>" for v in values))
        for key, values in differences(runs)
    ]
    told = html.table(("setting", *names), settings, wrap=True) if settings else "<p>None.</p>"
    body = (
        f"<header><h1>{len(runs)} runs compared</h1></header><br>"
        + html.card(html.table(head, rows, " nnnnnn"))
        + f'<br><div class="charts">{"".join(charts)}</div>\n'
        + html.section("Differing settings", html.card(told))
    )
    return html.page("Runs compared: " + ", ".join(names), body)


def _colour(number_of_run: int) -> int:
    return (number_of_run - 1) % html.COLOURS + 1


def _recoloured(line: Line) -> Line:
    return Line(line.name, line.points, _colour(line.colour), line.faint, len(line.points) <= 60)


def write_page(path: Path, runs: Sequence[RunListing]) -> None:
    """Write the page to a file, in the place of an earlier page.

    Raises:
        UserError: something else is there.
    """
    html.check_ours(path)
    write_atomically(path, page(runs).encode("utf-8", "replace"))
