"""What every tracker of experiments offers to the log, and what its faults say."""

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
    """One run of a tracker, by process 0. Where it fails, to make one raises UserError, and its
    methods raise Lost."""

    def write(self, values: dict[str, Any]) -> None:
        """A line of metrics.jsonl, under the same names."""

    def show(self, step: int, samples: list[Sample]) -> None:
        """The texts that were sampled after a step."""

    def close(self) -> None: ...


class Lost(Exception):
    """A tracker failed in the midst of training, which goes on without it. The message is whole."""


@contextlib.contextmanager
def beginning(title: str, without: str) -> Iterator[None]:
    """Raise any error with which a tracker begins as a UserError.

    Args:
        without: the setting that does without it.

    Raises:
        UserError: its service, network or disk failed.
    """
    try:
        yield
    except Exception as error:
        raise UserError(
            f"{title} failed ({_reason(error)}); mend that, or do without it by {without}"
        ) from None


@contextlib.contextmanager
def lost(title: str, hint: str = "") -> Iterator[None]:
    """Raise any error of a tracker in the midst of training as `Lost`.

    Args:
        hint: how it can get what it misses.

    Raises:
        Lost: its service, network or disk failed.
    """
    try:
        yield
    except Exception as error:
        raise Lost(
            f"{title} failed ({_reason(error)}) and is left out from here on; metrics.jsonl has "
            f"every line{hint}"
        ) from None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error, 300)}"


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """What of a line is drawn over the steps."""
    return {name: value for name, value in values.items() if "/" in name or name == "tokens"}
