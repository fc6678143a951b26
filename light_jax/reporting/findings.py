"""What `llm-train --check` found, as data, as JSON and as text. Imports no JAX."""

from __future__ import annotations

import dataclasses
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from light_jax.config import TrainingConfig, load_config
from light_jax.reporting.units import count, size
from light_llm.errors import IllegalConfig, UserError

if TYPE_CHECKING:
    from light_jax.reporting.program import Collective

Level = Literal["error", "warning", "note"]
HERE = "here"
"""The devices that JAX finds."""
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found of one key. Of these, only an error keeps a run from running."""

    level: Level
    key: str
    """A key of the config by its dotted name; `config`, `resume`, `devices`, `step`,
    `attention`, `disk` and `memory` are what is no key."""
    message: str
    """Complete as it stands, with the remedy."""


@dataclasses.dataclass(frozen=True)
class Devices:
    kind: str
    count: int


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device. Of a step that the compiler refused only the total may be known."""

    arguments: int | None
    temporaries: int | None
    total: int | None
    limit: int | None


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that a check found; what could not be known is None."""

    findings: tuple[Finding, ...]
    devices: Devices | None = None
    memory: Memory | None = None
    attention: str | None = None
    """The kernel."""
    collectives: dict[str, Collective] | None = None
    """Of one step, by kind."""
    flops_per_step: float | None = None
    """The model's arithmetic, on all devices together."""
    compile_seconds: float | None = None
    largest_batch_size: int | None = None
    """The largest batch_size whose step fits into the memory of these devices."""

    @property
    def ok(self) -> bool:
        """Whether the run would run."""
        return not any(finding.level == "error" for finding in self.findings)

    def of(self, level: Level) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == level]

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {"ok": self.ok, **dataclasses.asdict(self)}


def read(path: str | Path) -> tuple[TrainingConfig | None, list[Finding]]:
    """(the config of a file, what it warned of), or (None, a finding for each of its problems)."""
    cfg, found = None, []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            cfg = load_config(path)
        except IllegalConfig as error:
            found += [Finding("error", key or "config", problem) for key, problem in error.problems]
        except UserError as error:
            found.append(Finding("error", "config", str(error)))
    for warning in caught:
        if warning.category is UserWarning:
            named = re.match(r"[\w.]+", str(warning.message))
            key = f"model.{named[0]}" if named else "config"
            found.append(Finding("warning", key, str(warning.message)))
    return cfg, found


def lines(report: Report) -> list[str]:
    """The report for a person: findings by level, what the compiler said, the verdict."""
    text: list[str] = []
    for level in LEVELS:
        if found := report.of(level):
            text += [f"{level}s" if len(found) > 1 else level]
            text += [f"  {_line(finding)}" for finding in found]
    text += _compiled(report)
    errors = len(report.of("error"))
    verdict = f"no: {errors} error{'' if errors == 1 else 's'}" if errors else "yes"
    return [*text, f"{'would run':<12}{verdict}"]


def _line(finding: Finding) -> str:
    message = finding.message.replace("\n", "\n    ")
    return message if message.startswith(finding.key) else f"{finding.key}: {message}"


def _compiled(report: Report) -> list[str]:
    """The lines of the compiled step."""
    rows: dict[str, str] = {}
    if report.devices is not None:
        rows["devices"] = f"{report.devices.count} × {report.devices.kind}"
    if report.memory is not None:
        rows["memory"] = _memory(report.memory)
    if report.attention is not None:
        rows["attention"] = report.attention
    if report.collectives is not None:
        rows["collectives"] = _told(report.collectives)
    if report.flops_per_step is not None:
        rows["arithmetic"] = f"{count(report.flops_per_step)} FLOP a step"
    if report.compile_seconds is not None:
        rows["compiled in"] = f"{report.compile_seconds:.1f} s"
    if report.largest_batch_size is not None:
        rows["largest"] = f"batch_size {report.largest_batch_size} fits, with the rest as it is"
    return [f"{name:<12}{value}" for name, value in rows.items()]


def _memory(memory: Memory) -> str:
    total, limit, *parts = (
        "?" if number is None else size(number)
        for number in (memory.total, memory.limit, memory.arguments, memory.temporaries)
    )
    verdict = ""
    if memory.total is not None and memory.limit is not None:
        verdict = ": fits" if memory.total <= memory.limit else ": does not fit"
    of = "" if memory.arguments is None else f" ({parts[0]} arguments, {parts[1]} temporaries)"
    return f"{total} of {limit} per device{verdict}{of}"


def _told(collectives: dict[str, Collective]) -> str:
    each = [f"{of.count} {kind} ({size(of.bytes)})" for kind, of in collectives.items()]
    return ", ".join(each) + " per device and step" if each else "none"
