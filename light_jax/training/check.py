"""`llm-train --check`: whether a run would run, with every reason at once, and nothing done.

Nothing is trained and nothing is written. First come the checks of every start (`preflight`), then
those that a start leaves out, then the real step, compiled for the devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from light_jax.checkpoint import store
from light_jax.config import TrainingConfig
from light_jax.data.index import index_shards
from light_jax.data.shards import expand
from light_jax.parallel.cache import keep_compiled
from light_jax.parallel.devices import devices as all_devices
from light_jax.parallel.hosts import initialize
from light_jax.parallel.targets import Target, compiling_for, target
from light_jax.reporting.attention import attention_of
from light_jax.reporting.findings import HERE, Devices, Finding, Level, Memory, Report, read
from light_jax.sources import fields_of
from light_jax.state import Tag
from light_jax.training import advice
from light_jax.training.compiled import blank_state
from light_jax.training.fit import Fit, Progress, measure, unseen
from light_jax.training.memory import Room, check_state, check_step, room
from light_jax.training.preflight import DOCUMENTS, Inspected, inspect, like_the_resumed
from light_llm.errors import UserError

LISTED_SHARDS = 20
"""Damaged shards that are named one by one."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The devices to check for."""

    devices: Sequence[jax.Device]
    room: Room | None  # of each, where that is known
    target: Target | None  # None for those that are here

    @property
    def summary(self) -> Devices:
        return Devices(self.devices[0].device_kind, len(self.devices))


class Collector:
    """Findings, in the order in which they were made; the same one counts once."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.unknown: set[str] = set()
        """Keys that are not judged, because what they depend on is wrong itself."""

    def add(self, level: Level, key: str, message: str) -> None:
        finding = Finding(level, key, message)
        if key not in self.unknown and finding not in self.findings:
            self.findings.append(finding)

    @contextlib.contextmanager
    def under(self, key: str) -> Iterator[None]:
        """Keep the warnings and the UserError of the block as findings of this key."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            failure: str | None = None
            try:
                yield
            except UserError as error:
                failure = str(error)
            except OSError as error:  # a folder without permission, a name that is too long
                reason = error.strerror or error
                failure = f"{error.filename or key}: {reason}; check the path and its permissions"
        for warning in caught:
            if warning.category is UserWarning:
                self.add("warning", key, str(warning.message))
        if failure is not None:
            self.add("error", key, failure)

    def failed(self, *keys: str) -> bool:
        return any(found.level == "error" and found.key in keys for found in self.findings)


def check(
    config: str | Path,
    resume: str | None = None,
    devices: str = HERE,
    progress: Progress | None = None,
) -> Report:
    """Do what `llm-train CONFIG --check [--resume …] [--devices NAME]` does; nothing is printed.

    Args:
        devices: `here`, or the name of devices that are not, such as v5e-8 or h100-1.
        progress: is told what is compiled, and for how long.
    """
    found = Collector()
    chosen: Chosen | None = None
    with found.under("devices"):
        chosen = _choose(devices)
    cfg, told = read(config)
    for finding in told:
        found.add(finding.level, finding.key, finding.message)
    if cfg is None:
        return Report(tuple(found.findings), None if chosen is None else chosen.summary)
    if chosen is None:
        found.unknown |= {"mesh", "batch_size"}
    tag = None if resume is None else _find(resume, cfg, found)
    with found.under("resume"):
        cfg = like_the_resumed(cfg, tag)
    devices_of_mesh = None if chosen is None else chosen.devices
    inspected = inspect(cfg, tag, found.under, devices_of_mesh, probe=False)
    _inspect_further(cfg, tag, inspected, found)
    fit = None
    no_model = found.failed("mesh", "batch_size", DOCUMENTS)
    if chosen is not None and inspected.mesh is not None and not no_model:
        fit = _compile(cfg, tag, chosen, inspected.mesh, found, progress)
    return _report(found, chosen, fit)


def _compile(
    cfg: TrainingConfig,
    tag: Tag | None,
    chosen: Chosen,
    mesh: Mesh,
    found: Collector,
    progress: Progress | None,
) -> Fit | None:
    """Compile the step; None where that is to no purpose, or fails."""
    with found.under("memory"):
        check_state(blank_state(cfg, mesh)[0], mesh, chosen.room)
    if found.failed("memory"):
        return None
    attention = attention_of(cfg, mesh)
    if attention.why is not None:
        remedy = "" if attention.remedy is None else f": {attention.remedy} for the fused kernel"
        slower = "which take more time and memory"
        found.add("note", "attention", f"blocks of queries ({attention.why}), {slower}{remedy}")
    fit = None
    with found.under("step"), compiling_for(chosen.target):
        fit = measure(cfg, mesh, chosen.room, progress=progress or unseen)
    if fit is not None and fit.memory is not None:
        with found.under("memory"):
            largest, resuming = fit.largest_batch_size, tag is not None
            check_step(cfg, mesh, fit.memory, chosen.room, resuming=resuming, largest=largest)
    return fit


def _choose(name: str) -> Chosen:
    """
    Raises:
        UserError: there are no such devices, or what compiles for them is not installed.
    """
    if name != HERE:
        there = target(name)
        return Chosen(there.devices, Room(there.memory_limit, f"{there.kind} holds"), there)
    if not jax.distributed.is_initialized():
        initialize()
    keep_compiled()
    return Chosen(all_devices(), room(jax.local_devices()), None)


def _find(resume: str, cfg: TrainingConfig, found: Collector) -> Tag | None:
    """The tag to resume from. Where there is none to be had, nothing is said of its folder."""
    with found.under("resume"):
        return store.find(resume, Path(cfg.checkpoint_dir))
    found.unknown |= {"resume", "checkpoint_dir"}
    return None


def _inspect_further(
    cfg: TrainingConfig, tag: Tag | None, inspected: Inspected, found: Collector
) -> None:
    """What a start does not check, because it takes long or stops nothing."""
    for name, paths, stream in (
        ("train_data", cfg.train_data, inspected.train),
        ("val_data", cfg.val_data, inspected.val),
    ):
        if paths is None:
            continue
        if stream is None:
            _each_shard(fields_of(paths, name), cfg.model.vocab_size, found)
        else:
            with found.under(name):
                advice.read_some(stream)
            with found.under(name):
                advice.warn_of_ends(stream, name)
    with found.under("tokenizer_path"):
        advice.warn_of_tokenizer(cfg, inspected.train)
    with found.under("save_every"):
        advice.warn_of_saves(cfg)
    with found.under("eval_every"):
        advice.warn_of_evaluations(cfg)
    with found.under("disk"):
        if not found.failed("checkpoint_dir", DOCUMENTS):
            advice.check_disk(cfg, tag)
    for key, message in advice.notes(cfg, tag, inspected):
        found.add("note", key, message)


def _each_shard(fields: list[tuple[str, str]], vocab_size: int, found: Collector) -> None:
    """After the first error of the data, those of the other paths and shards."""
    before = len(found.findings)
    for name, path in fields:
        shards: list[str] = []
        with found.under(name):
            shards = expand(path, name)
        for shard in shards:
            if len(found.findings) - before >= LISTED_SHARDS:
                return
            with found.under(name):
                index_shards([shard], vocab_size, name)


def _report(found: Collector, chosen: Chosen | None, fit: Fit | None) -> Report:
    """The findings with what the compiler said."""
    findings, devices = tuple(found.findings), None if chosen is None else chosen.summary
    if fit is None:
        return Report(findings, devices)
    program, memory = fit.program, fit.memory
    limit = None if chosen is None or chosen.room is None else chosen.room.limit
    return Report(
        findings,
        devices,
        None
        if memory is None
        else Memory(memory.arguments, memory.temporaries, memory.total, limit),
        fit.attention,
        None if program is None else program.collectives,
        fit.flops_per_step,
        fit.compile_seconds,
        fit.largest_batch_size or None,
    )
