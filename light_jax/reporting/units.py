"""Numbers as a person reads them."""

from __future__ import annotations

import math
from datetime import timedelta


def count(number: float) -> str:
    """25190080 -> `25.2 M`."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f}"


def counted(number: int, noun: str, many: str | None = None) -> str:
    """`1 shard`, `2 shards`; `many` is a plural that is not made by an s."""
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"


def size(num_bytes: float) -> str:
    """In GiB, MiB or KiB."""
    for bound, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if num_bytes >= bound:
            return f"{num_bytes / bound:.1f} {unit}"
    return f"{num_bytes:.0f} B"


def perplexity(loss: float) -> float:
    """exp of a loss in nats a token; infinite where a float cannot hold it."""
    return math.inf if loss > 700 else math.exp(loss)


def perplexity_form(loss: float) -> str:
    """`12.18`; `1.2e+07` from a million on, as the loss of a diverged run gives; `∞`."""
    value = perplexity(loss)
    if math.isinf(value):
        return "∞"
    return f"{value:.2f}" if value < 1e6 else f"{value:.1e}"


def duration(seconds: float) -> str:
    return str(timedelta(seconds=round(min(seconds, 8.64e10))))  # a thousand years at most
