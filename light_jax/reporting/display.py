"""How a run looks on a terminal while it goes on: some lines that stay below what is printed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from light_jax.reporting.units import count, duration, size

BLOCKS = "▁▂▃▄▅▆▇█"
LABEL = 8
"""Columns of the word that begins a line; a narrow terminal has none."""
NARROW = 48
WIDEST = 132
GAP = 3


@dataclass(frozen=True)
class Numbers:
    """What is shown; None where it is not known (yet)."""

    step: int
    num_steps: int
    loss: float | None = None  # smoothed
    loss_now: float | None = None
    losses: tuple[float, ...] = ()  # of the last lines, oldest first
    rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    step_seconds: float | None = None
    data_wait: float | None = None  # a share
    memory: int | None = None  # bytes
    seconds_left: float | None = None
    best: float | None = None
    best_step: int | None = None
    val_loss: float | None = None  # of the last evaluation
    evaluation_in: int | None = None  # steps; 0: none comes, or it is what is being done
    save_in: int | None = None


STYLES = {
    r"^warning:": "yellow",
    r"^(step \S+|[a-z]+( [a-z]+)?)(?=  )": "dim",
    r"(?<=loss )[\d.]+": "bold",
    r"\(best so far\)": "green",
}


def coloured(text: str, console: Console) -> str:
    """A line as this terminal is to get it; the same letters."""
    shown = Text(text)
    for pattern, style in STYLES.items():
        shown.highlight_regex(pattern, style)
    with console.capture() as captured:
        console.print(shown, soft_wrap=True, end="")
    return captured.get()


def frame(now: Numbers, width: int, elapsed: float, doing: str | None = None) -> list[Text]:
    """The lines of the display, none longer than `width` and no word cut in two.

    Args:
        elapsed: seconds since the start.
        doing: why no step is made at this moment.
    """
    width = min(width, WIDEST)
    lines = [_bar(now, width, elapsed)]
    for label, items in _rows(now, doing):
        lines += _flowed(label, [item for item in items if item is not None], width)
    return lines


def _rows(now: Numbers, doing: str | None) -> list[tuple[str, list[Text | None]]]:
    best = None if now.best is None else f"{now.best:.4f}"
    if best is not None and now.best_step is not None:
        best += f" at step {now.best_step:,}"
    last = None if now.val_loss == now.best else now.val_loss
    return [
        (
            "train",
            [
                _item("loss", now.loss, "{:.4f}", "bold"),
                _item("now", now.loss_now, "{:.4f}"),
                _item("lr", now.rate, "{:.2e}"),
                _item("grad norm", now.grad_norm, "{:.3g}"),
                _sparkline(now.losses),
            ],
        ),
        (
            "speed",
            [
                None
                if now.tokens_per_second is None
                else Text(f"{count(now.tokens_per_second)} tokens/s"),
                _item("MFU", now.mfu, "{:.1%}"),
                None if now.step_seconds is None else Text(f"{brief(now.step_seconds)}/step"),
                _item("data wait", now.data_wait, "{:.0%}"),
                None if now.memory is None else _pair("memory", size(now.memory)),
            ],
        ),
        (
            "val",
            [
                None if best is None else _pair("best", best, "green"),
                _item("last", last, "{:.4f}"),
            ],
        ),
        (
            "next",
            [
                Text(doing, "yellow") if doing else None,
                _item("evaluation in", now.evaluation_in or None, "{:,} steps"),
                _item("save in", now.save_in or None, "{:,} steps"),
            ],
        ),
    ]


def brief(seconds: float) -> str:
    """Of a step: 0.25 s or 3.1 ms."""
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"


def _item(name: str, value: float | None, form: str, style: str = "") -> Text | None:
    if value is None:
        return None
    text = form.format(value)
    return _pair(name, text.removesuffix("s") if value == 1 and form.endswith("s") else text, style)


def _pair(name: str, value: str, style: str = "") -> Text:
    return Text.assemble((f"{name} ", "dim"), (value, style))


def _sparkline(losses: tuple[float, ...]) -> Text | None:
    """The course of the loss; nothing before it has one."""
    shown = [loss for loss in losses if math.isfinite(loss)]
    if len(shown) < 2:
        return None
    low, high = min(shown), max(shown)
    top = len(BLOCKS) - 1
    scale = top / (high - low) if high > low else 0.0
    return Text("".join(BLOCKS[round((loss - low) * scale)] for loss in shown), "cyan")


def _flowed(label: str, items: list[Text], width: int) -> list[Text]:
    """Items side by side for as long as they fit, then on the next line."""
    if not items:
        return []
    indent = LABEL if width >= NARROW else 0
    lines = [Text(f"{label:<{LABEL}}" if indent else "", "dim")]
    start = True
    for item in items:
        if not start and lines[-1].cell_len + GAP + item.cell_len > width:
            lines.append(Text(" " * indent))
            start = True
        if not start:
            lines[-1].append(" " * GAP)
        lines[-1].append_text(item)
        start = False
    for line in lines:
        line.truncate(width, overflow="ellipsis")  # an item wider than the terminal
    return lines


def _bar(now: Numbers, width: int, elapsed: float) -> Text:
    """Steps, a bar that takes what the rest leaves, and the time."""
    share = now.step / now.num_steps
    times = [f"{share:.0%}", duration(elapsed)]
    if now.seconds_left is not None:
        times.append(f"ETA {duration(now.seconds_left)}")
    left = f"step {now.step:,}/{now.num_steps:,}"
    while times and len(left) + len("  ".join(times)) + 2 > width:
        times.pop(1 if len(times) > 2 else 0)
    right = "  ".join(times)
    room = width - len(left) - len(right) - 4
    line = Text(left, "bold")
    if room >= 8:
        full = min(room, int(room * share))
        line.append("  ")
        line.append("━" * full, "not bold cyan")
        line.append("━" * (room - full), "not bold bright_black")
    line.append(f"  {right}" if right else "", "not bold")
    line.truncate(width)
    return line
