"""The numbers of an evaluation, as data, JSON and text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from light_jax.reporting.units import perplexity, perplexity_form

TOGETHER, WEIGHTED = "together", "weighted"


@dataclass(frozen=True)
class Score:
    """Losses over some tokens."""

    nats: float
    """The sum of the tokens' losses."""
    tokens: int
    num_bytes: float | None
    """Of the text that these tokens are, in UTF-8; None where it is unknown."""

    @property
    def loss(self) -> float:
        """In nats a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)

    @property
    def bits_per_byte(self) -> float | None:
        return self.nats / math.log(2) / self.num_bytes if self.num_bytes else None

    def as_json(self) -> dict[str, Any]:
        """A number that is not finite is null, as in metrics.jsonl."""
        numbers = {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "tokens": self.tokens,
            "bits_per_byte": self.bits_per_byte,
        }
        return {
            name: None if number is None or not math.isfinite(number) else number
            for name, number in numbers.items()
        }


def together(scores: Sequence[Score]) -> Score:
    """All tokens as one text; its bytes are known where all are."""
    sizes = [score.num_bytes for score in scores]
    known = [size for size in sizes if size is not None]
    return Score(
        math.fsum(score.nats for score in scores),
        sum(score.tokens for score in scores),
        sum(known) if len(known) == len(sizes) else None,
    )


def weighted(scores: Sequence[Score], shares: Sequence[float]) -> Score:
    """As many tokens in all, of which each source gives its share at its own loss."""
    tokens = sum(score.tokens for score in scores)
    each = list(zip(scores, shares, strict=True))
    sizes = [share * score.num_bytes / score.tokens for score, share in each if score.num_bytes]
    return Score(
        tokens * math.fsum(share * score.loss for score, share in each),
        tokens,
        tokens * math.fsum(sizes) if len(sizes) == len(scores) else None,
    )


@dataclass(frozen=True)
class Report:
    """The losses of a checkpoint on the windows of some paths."""

    checkpoint: Path
    step: int | None
    """None where another trainer wrote the checkpoint."""
    seq_len: int
    dtype: str
    where: str
    """The framework and its devices."""
    per_source: list[tuple[str, Score]]
    shares: list[float] | None = None
    """Of named sources: what each counts in the total. None where each token counts once."""

    @property
    def total(self) -> Score:
        scores = [score for _, score in self.per_source]
        return together(scores) if self.shares is None else weighted(scores, self.shares)

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "checkpoint": str(self.checkpoint),
            "step": self.step,
            "seq_len": self.seq_len,
            "dtype": self.dtype,
            "backend": self.where,
            **self.total.as_json(),
            "per_source": [
                {**place, **score.as_json()}
                for place, (_, score) in zip(self._places(), self.per_source, strict=True)
            ],
        }

    def _places(self) -> list[dict[str, Any]]:
        """Which data each score is of."""
        if self.shares is None:
            return [{"path": path} for path, _ in self.per_source]
        named = zip(self.per_source, self.shares, strict=True)
        return [{"name": name, "share": share} for (name, _), share in named]

    def lines(self) -> list[str]:
        """The report for a person."""
        step = "" if self.step is None else f", step {self.step}"
        rows = list(self.per_source)
        if len(rows) > 1:
            rows.append((TOGETHER if self.shares is None else WEIGHTED, self.total))
        cells = [("data", "tokens", "loss", "perplexity", "bits/byte")]
        cells += [(path, *_told(score)) for path, score in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return [
            f"checkpoint  {self.checkpoint}{step}",
            f"windows     all, of seq_len {self.seq_len}",
            f"computed    {self.dtype}, {self.where}",
            "",
            *(
                f"{name:<{widths[0]}}"
                + "".join(
                    f"  {cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)
                )
                for name, *rest in cells
            ),
        ]


def _told(score: Score) -> tuple[str, str, str, str]:
    bits = score.bits_per_byte
    return (
        f"{score.tokens:,}",
        f"{score.loss:.4f}",
        perplexity_form(score.loss),
        "-" if bits is None else f"{bits:.4f}",
    )
