"""Curves as inline SVG that stretches to any width; the labels are text of the page around it.

The viewBox is SIZE × SIZE whatever the shape on the screen, so lines must not scale with it.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from light_jax.runs.history import Curve
from light_llm.printing import printable

SIZE = 1000
POINTS = 360
"""Columns of a drawn curve: more than this is reduced to each column's lowest and highest value."""
SMOOTHING = 40  # a smoothed curve averages over about this part of the run
FLAT = 0.02  # an axis spans at least this share of its values: noise of the last digit is no curve

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One curve of a chart, in data's own units."""

    name: str
    points: Points
    colour: int  # of the page's palette, from 1
    faint: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Axis:
    """From data to 0…1, linear or logarithmic."""

    low: float
    high: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            low, high, value = math.log(self.low), math.log(self.high), math.log(value)
        else:
            low, high = self.low, self.high
        return (value - low) / (high - low)

    def ticks(self, count: int = 5, unit: float = 1.0) -> list[float]:
        """Values inside the axis, about `count` of them; on a linear one round in `unit`."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            marks = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
            inside = [mark for mark in marks if self.low <= mark <= self.high]
            if len(inside) > count + 2:
                tens = [mark for mark in inside if round(math.log10(mark), 6).is_integer()]
                inside = tens[:: max(1, len(tens) // count)]
            if len(inside) >= 2:
                return inside
        step = _round_step((self.high - self.low) / count / unit) * unit
        first_tick = math.ceil(self.low / step - 1e-9)
        last_tick = math.floor(self.high / step + 1e-9)
        return [tick * step for tick in range(first_tick, last_tick + 1)]


def _round_step(wanted: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below `wanted`."""
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= wanted * (1 - 1e-9))


def axis(values: Sequence[float], *, log: bool | None = False, pad: float = 0.05) -> Axis:
    """An axis that holds all values.

    Args:
        log: None chooses it where the values are positive and far apart.
    """
    low, high = min(values), max(values)
    if log is None:
        log = low > 0 and high / low > 5
    if log and low > 0 and high > low:
        margin = (high / low) ** pad
        return Axis(low / margin, high * margin, log=True)
    span = max(high - low, abs(high) * FLAT, 1e-12)
    middle = (low + high) / 2
    return Axis(middle - span * (0.5 + pad), middle + span * (0.5 + pad))


def reduced(curve: Curve, columns: int = POINTS) -> Points:
    """At most two points a column, its lowest and its highest in their order: no spike is lost."""
    count = len(curve)
    if count <= 2 * columns:
        return list(zip(curve.steps, curve.values, strict=True))
    points: Points = []
    for start, part in _columns(curve.values, columns):
        lowest, highest = part.index(min(part)), part.index(max(part))
        for i in sorted({lowest, highest}):
            points.append((curve.steps[start + i], part[i]))
    if points[-1][0] != curve.steps[-1]:
        points.append((curve.steps[-1], curve.values[-1]))
    return points


def smoothed(curve: Curve, columns: int = POINTS) -> Points:
    """A running mean over about a SMOOTHING-th of the curve; empty where it has too few points."""
    means = [
        (curve.steps[start + len(part) - 1], sum(part) / len(part))
        for start, part in _columns(curve.values, columns)
    ]
    if len(means) < SMOOTHING // 2:
        return []
    keep = 1 - 1 / max(2.0, len(means) / SMOOTHING)
    mean, weight, points = 0.0, 0.0, []
    for step, value in means:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        points.append((step, mean / weight))
    return points


def _columns(values: array[float], columns: int) -> list[tuple[int, array[float]]]:
    count = len(values)
    edges = sorted({count * i // columns for i in range(columns + 1)})
    return [(a, values[a:b]) for a, b in itertools.pairwise(edges)]


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    form: Callable[[float], str],
    x_form: Callable[[float], str],
    last_form: Callable[[float], str] | None = None,
    x_name: str = "step",
    log: bool | None = False,
    tall: bool = False,
    floor: float | None = None,
    unit: float = 1.0,
) -> str:
    """A figure of HTML; an empty text where no line has a point.

    Args:
        form: writes a value of the y axis, `x_form` one of the x axis, `last_form` the last values
            of the legend, which are written as `form` does where it is None.
        floor: the y axis reaches down to this at least.
        unit: what the ticks of a linear y axis are round in.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = axis([x for line in lines for x, _ in line.points], pad=0.0)
    values = [y for line in lines for _, y in line.points]
    ys = axis(values if floor is None else [*values, floor], log=log)
    marks = ys.ticks(unit=unit)
    y_ticks = [
        f'<span class="y" style="bottom:{100 * ys(tick):.2f}%">{escape(form(tick))}</span>'
        for tick in marks
    ]
    grid = "".join(f"M0 {_y(ys(tick))}H{SIZE}" for tick in marks)
    x_ticks = [
        f'<span class="x" style="left:{100 * xs(tick):.2f}%">{escape(x_form(tick))}</span>'
        for tick in xs.ticks()
        if 0.02 < xs(tick) < 0.98
    ]
    told = [line for line in lines if not line.faint]
    legend = "".join(_legend(line, last_form or form, named=len(lines) > 1) for line in told)
    scale = f"{xs.low!r} {xs.high!r} {ys.low!r} {ys.high!r} {int(ys.log)}"
    return (
        f'<figure class="chart{" tall" if tall else ""}">'
        f"<figcaption><b>{escape(title)}</b><span>{legend}</span></figcaption>"
        f'<div class="plot" data-scale="{scale}" data-x="{escape(x_name)}">'
        f'<svg viewBox="0 0 {SIZE} {SIZE}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}"><path class="grid" d="{grid}"/>'
        f"{''.join(_drawn(line, xs, ys) for line in lines)}</svg>"
        f"{''.join(y_ticks)}{''.join(x_ticks)}</div></figure>\n"
    )


def _legend(line: Line, form: Callable[[float], str], *, named: bool) -> str:
    last = line.points[-1][1]
    name = f'<i class="key c{line.colour}"></i>{escape(printable(line.name))} ' if named else ""
    return f'{name}<data value="{last!r}">{escape(form(last))}</data> '


def _drawn(line: Line, xs: Axis, ys: Axis) -> str:
    at = [(f"{SIZE * xs(x):.1f}", _y(ys(y))) for x, y in line.points]
    kind = f"c{line.colour}{' faint' if line.faint else ''}"
    name = escape(printable(line.name))
    drawn = f'<polyline class="{kind}" data-name="{name}" points="{" ".join(map(",".join, at))}"/>'
    if line.dots or len(at) == 1:
        drawn += f'<path class="dots {kind}" d="{"".join(f"M{x} {y}h0" for x, y in at)}"/>'
    return drawn


def _y(share: float) -> str:
    return f"{SIZE * (1 - share):.1f}"
