"""starts.jsonl and samples.jsonl: when a run was started, on what; what its model wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from light_jax.runs.history import as_number
from light_llm.errors import UserError
from light_llm.files import given
from light_llm.files.disk import write_atomically

STARTS = "starts.jsonl"
SAMPLES = "samples.jsonl"
MOST_STARTS = 1000
TAIL = 2**18
"""Bytes of samples.jsonl that are read, its newest."""


class Sample(NamedTuple):
    step: int
    prompt: str
    text: str


def add_start(directory: Path, start: Mapping[str, Any], *, again: bool) -> None:
    """Write down a start of the run; those before it are kept if the run goes on here (`again`).

    Raises:
        UserError: what is there cannot be read.
        OSError: it cannot be written.
    """
    kept = read_starts(directory)[1 - MOST_STARTS :] if again else []
    lines = [json.dumps(line) + "\n" for line in (*kept, dict(start))]
    write_atomically(directory / STARTS, "".join(lines).encode())


def read_starts(directory: Path) -> list[dict[str, Any]]:
    """The starts of a run, oldest first; none where it has no such file.

    Raises:
        UserError: the file cannot be read.
    """
    path = directory / STARTS
    if not os.path.lexists(path):
        return []
    starts = (_object(line) for line in given.read_bytes(path).splitlines())
    return [start for start in starts if start is not None]


def read_samples(directory: Path, steps: int) -> list[Sample]:
    """What the model wrote at the newest `steps` evaluations, oldest first.

    Raises:
        UserError: the file cannot be read.
    """
    path = directory / SAMPLES
    if not os.path.lexists(path):
        return []
    with given.open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - TAIL))
        lines = file.read(TAIL).splitlines()
    samples = []
    for line in lines if size <= TAIL else lines[1:]:
        values = _object(line)
        if values is None:
            continue
        step, prompt, text = (values.get(name) for name in ("step", "prompt", "text"))
        if type(step) is int and isinstance(prompt, str) and isinstance(text, str):
            samples.append(Sample(step, prompt, text))
    newest = sorted({sample.step for sample in samples})[-steps:]
    return [sample for sample in samples if sample.step in newest]


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        values = given.parse_json(line, "")
    except UserError:
        return None
    return values if isinstance(values, dict) else None


def time_of(values: Mapping[str, Any]) -> float | None:
    """Seconds since 1970 from the key `time`, as far as a date can be made of them."""
    seconds = as_number(values.get("time"))
    return seconds if seconds is not None and 0 <= seconds < 2**37 else None
