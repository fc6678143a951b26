"""What every tracker of experiments offers to the log, and how its faults end a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from light_llm.errors import UserError, one_line


@dataclass(frozen=True)
class Sample:
    prompt: str
    text: str
    """What the model wrote after the prompt."""


class Tracker(Protocol):
    """One run of a tracker, by process 0. All its methods raise UserError where it fails."""

    def write(self, values: dict[str, Any]) -> None:
        """A line of metrics.jsonl, under the same names."""

    def show(self, step: int, samples: list[Sample]) -> None:
        """The texts that were sampled after a step."""

    def close(self) -> None: ...


@contextlib.contextmanager
def tracker_faults(title: str, without: str) -> Iterator[None]:
    """Raise any error of a tracker, its service, network or disk, as a UserError.

    Args:
        without: the setting that does without it.

    Raises:
        UserError: so that the run still commits what it trained.
    """
    try:
        yield
    except Exception as error:
        reason = one_line(error, 300)
        raise UserError(
            f"{title} failed ({type(error).__name__}: {reason}); continue with "
            f"--resume auto, or without it by {without}"
        ) from None


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """What of a line is drawn over the steps."""
    return {name: value for name, value in values.items() if "/" in name or name == "tokens"}
