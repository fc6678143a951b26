"""Runs on a terminal: tables, and curves in braille or, without colours, in letters."""

from __future__ import annotations

import string
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from light_jax.reporting.units import count, size
from light_jax.runs.draw import Axis, Line, axis
from light_jax.runs.listing import RunListing
from light_llm.printing import printable, say

COLOURS = (34, 33, 32, 35, 31, 36, 37)
"""Of ANSI, one a run."""
WIDTH, HEIGHT = 64, 16  # cells of a plot
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of a braille cell, by column and row


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: str = "") -> None:
    """Columns as wide as their cells; those with `n` in `numbers` end at the right."""
    cells = [[printable(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    kinds = numbers.ljust(len(head))
    for row in cells:
        line = (
            cell.rjust(width) if kind == "n" else cell.ljust(width)
            for cell, width, kind in zip(row, widths, kinds, strict=False)
        )
        say("  ".join(line).rstrip())


def print_listing(runs: Sequence[RunListing]) -> None:
    """Each run in a line, and below it a table of its tags."""
    now = time.time()
    for number, run in enumerate(runs):
        if number:
            say()
        say(f"{run.path}  {_told(run, now)}")
        rows = [
            (
                f"  {tag.name}",
                "–" if tag.step is None else f"{tag.step:,}",
                "–" if tag.val_loss is None else f"{tag.val_loss:.4f}",
                "–" if tag.time is None else age(now - tag.time),
                size(tag.size),
                tag.problem or ("complete" if tag.resumable else "weights alone"),
            )
            for tag in run.tags
        ]
        if rows:
            print_table(("  tag", "step", "val loss", "age", "size", ""), rows, " nnnn")


def _told(run: RunListing, now: float) -> str:
    of = "" if run.num_steps is None else f" of {run.num_steps:,}"
    told = [f"step {run.step:,}{of}", *(["finished"] if run.finished else [])]
    if run.tokens:
        told.append(f"{count(run.tokens)} tokens")
    if run.best is not None:
        told.append(f"best val loss {run.best[1]:.4f} at {run.best[0]:,}")
    if run.time is not None:
        told.append(f"{age(now - run.time)} ago")
    return " · ".join((*told, size(run.size)))


def age(seconds: float) -> str:
    """A duration in its largest unit: `3 min`, `2 h`, `5 d`."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(0, seconds):.0f} s"


def as_json(run: RunListing) -> dict[str, Any]:
    """What `--json` prints of a run."""
    return {
        "path": str(run.path),
        "step": run.step,
        "num_steps": run.num_steps,
        "finished": run.finished,
        "tokens": run.tokens,
        "best": None if run.best is None else {"step": run.best[0], "val_loss": run.best[1]},
        "time": run.time,
        "size": run.size,
        "tags": [
            {
                "name": tag.name,
                "step": tag.step,
                "val_loss": tag.val_loss,
                "time": tag.time,
                "size": tag.size,
                "complete": tag.problem is None,
                "resumable": tag.resumable,
                "problem": tag.problem,
            }
            for tag in run.tags
        ],
    }


def print_plot(
    title: str,
    lines: Sequence[Line],
    form: Callable[[float], str],
    x_form: Callable[[float], str],
) -> None:
    """The lines over each other: braille in their colours on a terminal, letters elsewhere."""
    lines = [line for line in lines if line.points]
    if not lines:
        return
    coloured = sys.stdout.isatty()
    xs = axis([x for line in lines for x, _ in line.points], pad=0.0)
    ys = axis([y for line in lines for _, y in line.points], log=None)
    cells = _cells(lines, xs, ys)
    ticks = {_row(ys(tick)): form(tick) for tick in ys.ticks()}
    margin = max(map(len, ticks.values()), default=0)
    say(title)
    for row in range(HEIGHT):
        drawn = "".join(_cell(cells.get((column, row)), lines, coloured) for column in range(WIDTH))
        print(f"{ticks.get(row, ''):>{margin}} │{drawn.rstrip()}")
    first, last = x_form(xs.low), x_form(xs.high)
    say(f"{'':{margin}} └{'─' * WIDTH}")
    say(f"{'':{margin}}  {first}{last:>{WIDTH - len(first)}}")
    for line in lines:
        print(_colour(line, "━━") if coloured else f" {_letter(line)}", end=" ")
        say(f"{line.name}  {line.points[-1][1]:.4f}")


def _letter(line: Line) -> str:
    letters = string.ascii_uppercase + string.ascii_lowercase
    return letters[(line.colour - 1) % len(letters)]


def _colour(line: Line, text: str) -> str:
    return f"\x1b[{COLOURS[(line.colour - 1) % len(COLOURS)]}m{text}\x1b[0m"


def _cell(found: tuple[int, int] | None, lines: Sequence[Line], coloured: bool) -> str:
    if found is None:
        return " "
    mask, line = found[0], lines[found[1]]
    return _colour(line, chr(0x2800 + mask)) if coloured else _letter(line)


def _row(share: float) -> int:
    return min(HEIGHT - 1, max(0, int((1 - share) * HEIGHT)))


def _cells(lines: Sequence[Line], xs: Axis, ys: Axis) -> dict[tuple[int, int], tuple[int, int]]:
    """(column, row) -> (mask of its dots, the line that was drawn there last)."""
    cells: dict[tuple[int, int], tuple[int, int]] = {}
    for number, line in enumerate(lines):
        at = [(xs(x) * (2 * WIDTH - 1), (1 - ys(y)) * (4 * HEIGHT - 1)) for x, y in line.points]
        for (x0, y0), (x1, y1) in zip(at, at[1:] or at, strict=False):
            count_ = max(1, round(max(abs(x1 - x0), abs(y1 - y0))))
            for i in range(count_ + 1):
                x = round(x0 + (x1 - x0) * i / count_)
                y = round(y0 + (y1 - y0) * i / count_)
                key = x // 2, y // 4
                mask, owner = cells.get(key, (0, number))
                mask = mask if owner == number else 0
                cells[key] = mask | _DOTS[x % 2][y % 4], number
    return cells
