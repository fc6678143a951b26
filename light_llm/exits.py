"""Who must know that a command is over, before the interpreter ends."""

from __future__ import annotations

from collections.abc import Callable

_told: list[Callable[[int], None]] = []


def when_over(tell: Callable[[int], None]) -> None:
    """Have `tell` called with the exit code when the command has done everything."""
    _told.append(tell)


def over(code: int) -> None:
    for tell in _told:
        tell(code)
