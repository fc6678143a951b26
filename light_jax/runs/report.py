"""report.html: a run as one page that stands alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from light_jax.reporting.units import count, duration, perplexity_form, size
from light_jax.runs import html, notes
from light_jax.runs.datatable import data_table, pairs
from light_jax.runs.draw import Line, chart, reduced, smoothed
from light_jax.runs.facts import Facts, Parameter, Setting
from light_jax.runs.folder import TagFiles, size_on_disk, tags_of
from light_jax.runs.history import History
from light_jax.runs.listing import val_loss
from light_llm import __version__

NAME = "report.html"
MOST_EVALUATIONS = 500  # rows
OF_SOURCE = "val/loss/"
"""What the name of a source follows in the name of its curve."""
COLOURS = 7  # of the page's palette
LATELY = 15  # lines that the present speed is the median of
SAMPLED = 8  # evaluations whose samples are shown
STATES = ("running", "finished", "stopped", "failed")


@dataclass(frozen=True)
class Now:
    """What the page says of the run at the time of writing."""

    state: str  # one of STATES
    time: float  # seconds since 1970


def render(directory: Path, facts: Facts, history: History, now: Now) -> str:
    """The page, from what is in memory and in the run's folder.

    Raises:
        UserError: a file of the folder that the page tells of cannot be read.
    """
    samples = notes.read_samples(directory, SAMPLED)
    tags, starts = tags_of(directory), notes.read_starts(directory)
    body = [
        _head(facts, history, now),
        _tiles(facts, history, starts, now),
        f'<div class="charts">{"".join(_charts(history))}</div>\n',
        _evaluations(history),
        html.section("Samples", _samples(samples)),
        html.section("Checkpoints", _checkpoints(directory, tags, history, now)),
        html.section("Configuration", _configuration(facts.settings)),
        html.section("Parameters", _parameters(facts.parameters)),
        '<div class="two">',
        f"<div>{html.section('Data', html.card(data_table(facts, history)))}</div>",
        f"<div>{html.section('Hardware and versions', html.card(pairs(facts.hardware)))}</div>",
        "</div>\n",
        html.section("Starts", _starts(starts)),
        f"<footer>Written at {html.moment(now.time)} by light-llm-jax {__version__}. The page is "
        "written again at each evaluation, after each checkpoint, and at the end of the run. It "
        "loads nothing.</footer>",
    ]
    return html.page(f"{facts.name} – step {history.step:,}", "".join(body))


def _head(facts: Facts, history: History, now: Now) -> str:
    share = min(1.0, history.step / facts.num_steps)
    return (
        f"<header><h1>{html.text(facts.name)}</h1>"
        f'<span class="state {now.state}">{now.state}</span>'
        f'<span class="dim">step {history.step:,} of {facts.num_steps:,}</span></header>'
        f'<div class="bar"><i style="width:{100 * share:.2f}%"></i></div>\n'
    )


def _tiles(facts: Facts, history: History, starts: Sequence[Mapping[str, Any]], now: Now) -> str:
    tiles = []
    loss, best = history.curve("train/loss"), history.curve("val/loss").lowest()
    if loss.last is not None:
        means = smoothed(loss)
        below = f"smoothed {means[-1][1]:.4f}" if means else "nats a token"
        tiles.append(
            html.tile("train loss", f"{loss.last:.4f}", below, key="train/loss", number=loss.last)
        )
    if best is not None:
        below = f"at step {best[0]:,}, perplexity {perplexity_form(best[1])}"
        tiles.append(
            html.tile("best validation", f"{best[1]:.4f}", below, key="best", number=best[1])
        )
    epochs = history.step * facts.windows_per_step / max(1, facts.windows)
    tokens, sources = history.step * facts.tokens_per_step, len(facts.taken(0))
    below = f"from {sources} sources" if sources else f"{epochs:.2f} epochs"
    tiles.append(html.tile("tokens", count(tokens), below))
    speeds = history.curve("train/tokens_per_second").values[-LATELY:]
    speed = statistics.median(speeds) if speeds else 0.0
    if speed > 0:
        mfu = history.curve("train/mfu").last
        below = "" if mfu is None else f"MFU {mfu:.1%}"
        tiles.append(html.tile("tokens/s", count(speed), below, key="speed", number=speed))
    begun = [at for start in starts if (at := notes.time_of(start)) is not None]
    if now.state == "running" and speed > 0:
        left = max(0, facts.num_steps - history.step) * facts.tokens_per_step / speed
        tiles.append(html.tile("time left", duration(left), "at the present speed"))
    if begun:
        what = "since the start" if len(begun) == 1 else f"since the last of {len(begun)} starts"
        tiles.append(html.tile("time", duration(max(0.0, now.time - begun[-1])), what))
    return f'<div class="tiles">{"".join(tiles)}</div>\n'


def number(value: float) -> str:
    """Few digits, and a power of ten where it needs one: 3e-4, 0.012, 2.5e7."""
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        mantissa, _, power = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(power)}"
    return f"{value:.4g}"


def loss_form(value: float) -> str:
    return f"{value:.4f}"


def short(value: float) -> str:
    """A count without a zero behind its point: `300 k`."""
    return count(value).replace(".0 ", " ")


def _charts(history: History) -> Iterable[str]:
    loss, val = history.curve("train/loss"), history.curve("val/loss")
    averages = history.curve("val/loss_ema")
    means = smoothed(loss)
    lines = [
        Line("train, each line" if means else "train", reduced(loss), 1, faint=bool(means)),
        Line("train, smoothed", means, 1),
        Line("validation", reduced(val), 2, dots=len(val) <= 60),
        Line("validation, average", reduced(averages), 3, dots=len(averages) <= 60),
    ]
    yield chart("Loss", lines, form=number, x_form=short, last_form=loss_form, log=None, tall=True)
    names = [name for name in history.curves if name.startswith(OF_SOURCE)]
    if names:
        lines = [
            Line(name.removeprefix(OF_SOURCE), reduced(history.curve(name)), 1 + i % COLOURS)
            for i, name in enumerate(names)
        ]
        yield chart(
            "Validation loss by source",
            lines,
            form=number,
            x_form=short,
            last_form=loss_form,
            log=None,
            tall=True,
        )
    for title, name, form, log in (
        ("z-loss", "train/z_loss", number, None),
        ("Learning rate", "train/lr", number, False),
        ("Gradient norm", "train/grad_norm", number, None),
        ("Tokens per second", "train/tokens_per_second", short, False),
        ("MFU", "train/mfu", lambda y: f"{y:.1%}", False),
        ("Waiting for data", "perf/data_wait", lambda y: f"{y:.1%}", False),
        ("Memory", "perf/memory_bytes", lambda y: size(y).replace(".0 ", " "), False),
        ("Loss scale", "train/loss_scale", number, None),
    ):
        curve = history.curve(name)
        floor, unit = None if log is None else 0.0, 1.0
        if title == "Memory" and curve:  # it changes little, and is counted in powers of two
            floor, unit = None, 2.0**30 if max(curve.values) >= 2**30 else 2.0**20
        line = Line(name, reduced(curve), 1)
        yield chart(title, [line], form=form, x_form=short, log=log, floor=floor, unit=unit)


def _evaluations(history: History) -> str:
    curve = history.curve("val/loss")
    if not curve:
        return ""
    points = list(zip(curve.steps, curve.values, strict=True))[-MOST_EVALUATIONS:]
    rows = [
        (f"{step:,.0f}", f'<data value="{loss!r}">{loss:.4f}</data>', perplexity_form(loss))
        for step, loss in reversed(points)
    ]
    told = html.card(html.table(("step", "validation loss", "perplexity"), rows, "nnn"))
    return html.details(f"All {len(curve):,} evaluations", told)


def _samples(samples: Sequence[notes.Sample]) -> str:
    by_step: dict[int, list[str]] = {}
    for sample in samples:
        text = f"<pre><b>{html.text(sample.prompt)}</b>{html.text(sample.text)}</pre>"
        by_step.setdefault(sample.step, []).append(text)
    if not by_step:
        return ""
    newest, *earlier = sorted(by_step, reverse=True)
    told = html.card(f"<h3>Step {newest:,}</h3>{''.join(by_step[newest])}")
    for step in earlier:
        told += html.details(f"Step {step:,}", html.card("".join(by_step[step])))
    return told


def _checkpoints(directory: Path, tags: Sequence[TagFiles], history: History, now: Now) -> str:
    if not tags:
        return html.card('<p class="dim">None yet.</p>')
    rows = []
    for tag in reversed(tags):
        loss = val_loss(tag, history)
        rows.append(
            (
                f"<code>{html.text(tag.name)}</code>",
                "–" if tag.step is None else f"{tag.step:,}",
                "–" if loss is None else f'<data value="{loss!r}">{loss:.4f}</data>',
                html.moment(tag.time),
                "–" if tag.time is None else f"{duration(max(0.0, now.time - tag.time))}",
                size(tag.size),
                html.text(tag.problem or "complete"),
            )
        )
    head = ("tag", "step", "validation loss", "saved", "age", "size", "")
    total = size(size_on_disk(directory, list(tags)))
    note = f'<p class="dim" style="margin-top:10px">{total} on disk: tags of one step share files.'
    return html.card(html.table(head, rows, " nn nn") + f"{note}</p>")


def plain(value: Any) -> str:
    """A setting as a config file has it."""
    return value if isinstance(value, str) else json.dumps(value)


def _configuration(settings: Sequence[Setting]) -> str:
    changed = [
        (_key(s), f"<code>{html.text(plain(s.value))}</code>", _default(s))
        for s in settings
        if s.changed
    ]
    same = [
        (_key(s), f"<code>{html.text(plain(s.value))}</code>") for s in settings if not s.changed
    ]
    head = ("differs from the default", "value", "default")
    first = html.table(head, changed, wrap=True) if changed else ""
    rest = html.table(("as by default", "value"), same, wrap=True)
    return html.card(first + html.details(f"{len(same)} settings as by default", rest))


def _key(setting: Setting) -> str:
    return f"<code>{html.text(setting.key)}</code>"


def _default(setting: Setting) -> str:
    text = "–" if setting.default is None else html.text(plain(setting.default))
    return f'<span class="dim">{text}</span>'


def _parameters(parameters: Sequence[Parameter]) -> str:
    total = sum(parameter.count for parameter in parameters)
    parts: dict[str, int] = {}
    for parameter in parameters:
        parts[parameter.part] = parts.get(parameter.part, 0) + parameter.count
    bars = "".join(
        f'<i class="c{i}" style="flex:{amount / max(1, total):.5f}"></i>'
        for i, amount in enumerate(parts.values(), 1)
    )
    rows = [
        (f'<i class="key c{i}"></i>{part}', f"{amount:,}", f"{amount / max(1, total):.1%}")
        for i, (part, amount) in enumerate(parts.items(), 1)
    ]
    each = [
        (
            f"<code>{html.text(p.name)}</code>",
            " × ".join(f"{n:,}" for n in p.shape),
            f"{p.count:,}",
        )
        for p in parameters
    ]
    shown = html.details(
        f"All {len(parameters):,} tensors", html.table(("name", "shape", "parameters"), each, " nn")
    )
    sums = html.table(("part", "parameters", "share"), rows, " nn")
    return html.card(
        f'<p><b>{count(total)}</b> parameters <span class="dim">(<data value="{total}">{total:,}'
        f'</data>)</span></p><div class="share">{bars}</div>{sums}{shown}'
    )


def _starts(starts: Sequence[Mapping[str, Any]]) -> str:
    if not starts:
        return ""
    names = ("step", "resumed", "version", "jax", "devices", "hosts", "commit")
    rows = [
        (
            html.moment(notes.time_of(start)),
            *(html.text("–" if (v := start.get(name)) is None else plain(v)) for name in names),
        )
        for start in reversed(starts)
    ]
    head = ("time", "from step", "of tag", "light-llm-jax", *names[3:])
    return html.card(html.table(head, rows, " n   n"))
