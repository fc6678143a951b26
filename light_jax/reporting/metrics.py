"""Logged numbers: metrics.jsonl, one strict JSON object a line, and the same names to W&B."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from light_llm.files.disk import write_atomically

NAME = "metrics.jsonl"


class MetricsFile:
    """Appends to DIR/metrics.jsonl; on resume, lines after the resumed step are dropped first."""

    def __init__(self, directory: Path, resumed_step: int) -> None:
        path = directory / NAME
        write_atomically(path, _lines_up_to(path, resumed_step) if resumed_step else b"")
        self._file = path.open("a", encoding="utf-8")

    def write(self, values: dict[str, Any]) -> None:
        """Write one line; a non-finite number is null."""
        line = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _lines_up_to(path: Path, step: int) -> bytes:
    """The whole lines of steps 1 to `step`; a line that a crash cut short is dropped."""
    kept = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + b"\n")
        except (ValueError, KeyError, TypeError):
            continue
    return b"".join(kept)
