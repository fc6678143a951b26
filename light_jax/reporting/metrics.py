"""Logged numbers: metrics.jsonl, one strict JSON object a line, and the same names to W&B."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from light_llm.errors import UserError
from light_llm.files import given
from light_llm.files.disk import write_atomically

NAME = "metrics.jsonl"
LONGEST_LINE = 2**20  # bytes


class MetricsFile:
    """Appends to DIR/metrics.jsonl; on resume, lines after the resumed step are dropped first."""

    def __init__(self, directory: Path, resumed_step: int) -> None:
        path = directory / NAME
        write_atomically(path, _lines_up_to(path, resumed_step) if resumed_step else b"")
        # without a buffer: what a full disk did not take is not tried again at the end
        self._file = path.open("ab", buffering=0)
        self._path = path

    def write(self, values: dict[str, Any]) -> None:
        """Write one line; a non-finite number is null.

        Raises:
            UserError: the disk does not take it.
        """
        line = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        try:
            self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be written ({error.strerror}); make room or mend the disk, "
                "and continue with --resume auto"
            ) from None

    def close(self) -> None:
        self._file.close()


def _lines_up_to(path: Path, step: int) -> bytes:
    """The whole lines of steps 1 to `step`; a line that a crash cut short is dropped."""
    if not os.path.lexists(path):
        return b""
    kept = []
    with given.open_regular(path) as file:
        while line := file.readline(LONGEST_LINE):
            try:
                if line.endswith(b"\n") and given.parse_json(line, path)["step"] <= step:
                    kept.append(line)
            except (UserError, KeyError, TypeError):
                continue
    return b"".join(kept)
