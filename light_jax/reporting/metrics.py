"""What a run keeps of itself: metrics.jsonl and samples.jsonl, one strict JSON object a line."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from light_llm.errors import UserError
from light_llm.files import given
from light_llm.files.disk import write_atomically

NAME = "metrics.jsonl"
SAMPLES = "samples.jsonl"
REDONE = {NAME: "val/loss", SAMPLES: "text"}
"""The name that tells the lines of an evaluation."""
LONGEST_LINE = 2**20  # bytes


class MetricsFile:
    """Appends to DIR/metrics.jsonl; on resume, lines after the resumed step are dropped first.

    Args:
        redo: that step is evaluated again, so the lines of its evaluation are dropped too.
        name: NAME or SAMPLES.
    """

    def __init__(
        self, directory: Path, resumed_step: int, *, redo: bool = False, name: str = NAME
    ) -> None:
        path, again = directory / name, REDONE[name] if redo else None
        kept = _lines_up_to(path, resumed_step, again) if resumed_step else b""
        write_atomically(path, kept)
        # unbuffered: what a full disk did not take is not tried again at the end
        self._file = path.open("ab", buffering=0)
        self._path = path

    def write(self, values: dict[str, Any]) -> None:
        """Write one line; a non-finite number is null.

        Raises:
            UserError: it cannot be written.
        """
        line = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        rest, size = (
            json.dumps(line, allow_nan=False).encode() + b"\n",
            os.fstat(self._file.fileno()).st_size,
        )
        try:
            while rest:  # a disk that is nearly full takes part of the line
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(size)  # no line is cut short
            raise self._unwritable(error) from None

    def close(self) -> None:
        """Raises UserError: a network disk reports only now that a write failed."""
        try:
            self._file.close()
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"{self._path}: cannot be written ({error.strerror}); free some space or fix the disk, "
            "and continue with --resume auto"
        )


def _lines_up_to(path: Path, step: int, again: str | None) -> bytes:
    """The whole lines of steps 1 to `step`; a line that a crash cut short is dropped.

    Args:
        again: lines of `step` that have this name are dropped too.
    """
    if not os.path.lexists(path):
        return b""
    kept = []
    with given.open_regular(path) as file:
        while line := file.readline(LONGEST_LINE):
            try:
                values = given.parse_json(line, path)
                redone = values["step"] == step and again in values
                if line.endswith(b"\n") and values["step"] <= step and not redone:
                    kept.append(line)
            except (UserError, KeyError, TypeError):
                continue
    return b"".join(kept)
