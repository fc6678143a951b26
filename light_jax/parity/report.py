"""What llm-parity prints and draws."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from light_jax.parity.activations import Stage, first_diverging
from light_jax.parity.lockstep import Row, Tolerance
from light_llm.errors import UserError


def stage_table(stages: Sequence[Stage], tolerance: float, everything: bool = False) -> list[str]:
    """The main stages, and every stage of the layer where the models first differ."""
    parted = first_diverging(stages, tolerance)
    layer = None if parted is None else parted.layer
    width = max(len("stage"), *(len(stage.name) for stage in stages))
    lines = [f"{'stage':{width}}  {'max abs':>9}  {'relative':>9}"]
    for stage in stages:
        of_interest = layer is not None and stage.layer == layer
        if everything or stage.is_main or of_interest:
            mark = "  beyond the tolerance" if stage.relative > tolerance else ""
            lines.append(f"{stage.name:{width}}  {_of(stage.max_abs)}  {_of(stage.relative)}{mark}")
    return lines


def stage_verdict(stages: Sequence[Stage], tolerance: float) -> str:
    parted = first_diverging(stages, tolerance)
    if parted is None:
        worst = max(stages, key=lambda stage: stage.relative)
        return (
            f"the same: all {len(stages)} stages agree within a relative difference of "
            f"{tolerance:g} (largest {worst.relative:.1e}, {worst.name})"
        )
    before = stages[stages.index(parted) - 1].name if parted is not stages[0] else "nothing"
    layer = "" if parted.layer is None else f" (layer {parted.layer})"
    return (
        f"not the same: the first to diverge is {parted.name}{layer}, relative difference "
        f"{parted.relative:.1e} > {tolerance:g}; the last before it that agrees is {before}"
    )


ROW_HEADER = (
    f"{'step':>6}  {'loss jax':>10} {'loss torch':>10} {'rel':>8}  "
    f"{'grad jax':>10} {'grad torch':>10} {'rel':>8}  "
    f"{'weights':>8} {'max abs':>8}  tensor"
)


def row_line(row: Row, tolerance: Tolerance) -> str:
    beyond = row.beyond(tolerance)
    mark = f"  beyond the tolerance: {', '.join(beyond)}" if beyond else ""
    return (
        f"{row.step:6d}  {row.jax.loss:10.6f} {row.torch.loss:10.6f} {row.loss:8.1e}  "
        f"{_norm(row.jax.grad_norm)} {_norm(row.torch.grad_norm)} {row.grad_norm:8.1e}  "
        f"{row.weights:8.1e} {row.weights_max_abs:8.1e}  {row.weights_where}{mark}"
    )


def row_verdict(rows: Sequence[Row], tolerance: Tolerance) -> str:
    bounds = ", ".join(
        f"{name} {bound:g}" for name, bound in zip(Tolerance._fields, tolerance, strict=True)
    )
    parted = next((row for row in rows if row.beyond(tolerance)), None)
    if parted is not None:
        return (
            f"not the same: step {parted.step} is the first to diverge, in "
            f"{', '.join(parted.beyond(tolerance))} (relative tolerances: {bounds}); "
            f"the largest difference of weights is in {parted.weights_where}"
        )
    largest = ", ".join(
        f"{name} {max(getattr(row, name) for row in rows):.1e}" for name in Tolerance._fields
    )
    return (
        f"the same: {len(rows)} step{'s' * (len(rows) > 1)} within the relative tolerances "
        f"{bounds} (largest {largest})"
    )


def check_png(path: Path) -> None:
    """Refuse, before anything is trained, a picture that could not be drawn.

    Raises:
        UserError: matplotlib is not installed, or there is no such folder to write to.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError(
            f"{path}: drawing it needs the package matplotlib; run `pip install -e '.[plot]'`, "
            "or leave it out with --no-png"
        ) from None
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"--png={str(path)!r} cannot be written; name a file in a writable folder")


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Losses, gradient norms and the differences by step, as a PNG.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 9), layout="constrained")
    losses, norms, apart = figure.subplots(3, sharex=True)
    figure.suptitle(title)
    steps = [row.step for row in rows]
    for axes, name in ((losses, "loss"), (norms, "grad_norm")):
        for side, style in (("jax", "-"), ("torch", "--")):
            values = [getattr(getattr(row, side), name) for row in rows]
            axes.plot(steps, [_gap(value) for value in values], style, label=side)
        axes.set_ylabel(name)
        axes.legend()
    for name in Tolerance._fields:
        values = [
            getattr(row, name) or None for row in rows
        ]  # the axis is logarithmic, without a zero
        apart.plot(steps, [_gap(value) for value in values], ".-", label=name)
    apart.set_yscale("log")
    apart.set_ylabel("relative difference")
    apart.set_xlabel("step")
    apart.legend()
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise UserError(f"--png={str(path)!r} cannot be written: {error}") from None


def _gap(value: float | None) -> float:
    return math.nan if value is None or not math.isfinite(value) else value


def _norm(value: float | None) -> str:
    return f"{'overflow':>10}" if value is None else f"{value:10.6f}"


def _of(value: float) -> str:
    return f"{value:9.1e}"
