"""What a run takes of each source of a mixture, as metrics and in words; of other data nothing."""

from __future__ import annotations

from light_jax.data.mixed import MixedStream
from light_jax.sources import Taken
from light_jax.state import Run


def taken_after(run: Run, step: int) -> list[Taken]:
    """What the first `step` steps took, those before a resume included."""
    stream, cfg = run.train_stream, run.cfg
    if not isinstance(stream, MixedStream):
        return []
    return stream.taken(step * cfg.batch_size * cfg.gradient_accumulation_steps)


def taken_as_metrics(run: Run, step: int) -> dict[str, float]:
    """For a line of metrics.jsonl."""
    line: dict[str, float] = {}
    for source in taken_after(run, step):
        line[f"data/tokens/{source.name}"] = source.tokens
        line[f"data/epochs/{source.name}"] = source.epochs
    return line


def lines(run: Run, step: int) -> list[str]:
    """A line for each source: what the first `step` steps take of it."""
    taken = taken_after(run, step)
    total = max(1, sum(source.windows for source in taken))
    width = max((len(source.name) for source in taken), default=0)
    return [
        f"  {source.name:<{width}}  {source.windows / total:6.2%} of the tokens: "
        f"{source.tokens:,} in {source.windows:,} windows, {source.epochs:.2f} epochs"
        for source in taken
    ]
