"""`llm-train --check`: whether a run would run, with every reason at once, and nothing done.

Nothing is trained and nothing is written. First come the checks of every start (`preflight`), then
those that a start leaves out, then the real step, compiled for the devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from light_jax.checkpoint import store
from light_jax.config import TrainingConfig, load_config
from light_jax.data.index import index_shards
from light_jax.data.shards import expand
from light_jax.parallel.devices import devices as local_devices
from light_jax.parallel.devices import memory_limit
from light_jax.parallel.hosts import initialize
from light_jax.parallel.sharding import batch_shards
from light_jax.parallel.targets import Target, compiling_for, target
from light_jax.reporting.findings import Devices, Finding, Level, Memory, Report
from light_jax.state import Tag
from light_jax.training import advice
from light_jax.training.fit import Fit, measure
from light_jax.training.preflight import Inspected, inspect, like_the_resumed
from light_llm.errors import IllegalConfig, UserError

HERE = "here"
LISTED_SHARDS = 20
"""Damaged shards that are named one by one."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The devices to check for."""

    devices: Sequence[jax.Device]
    memory_limit: int | None  # bytes of each
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
    *,
    announce: Callable[[str], None] = lambda line: None,
) -> Report:
    """Do what `llm-train CONFIG --check [--resume …] [--devices NAME]` does; nothing is printed.

    Args:
        devices: `here`, or the name of devices that are not, such as v5e-8 or h100-1.
        announce: is told what takes long before it begins.
    """
    found = Collector()
    chosen: Chosen | None = None
    with found.under("devices"):
        chosen = _choose(devices)
    cfg = _load(config, found)
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
    if chosen is not None and inspected.mesh is not None and not found.failed("batch_size"):
        announce(f"compiling the step for {chosen.summary.count} × {chosen.summary.kind} …")
        with found.under("step"), compiling_for(chosen.target):
            fit = measure(cfg, chosen.devices, chosen.memory_limit)
        if fit is not None and fit.fits is False:
            unit, kind = batch_shards(inspected.mesh), chosen.summary.kind
            found.add("error", "memory", advice.too_large(cfg, tag, fit, unit, kind))
    return _report(found, chosen, fit)


def _choose(name: str) -> Chosen:
    """
    Raises:
        UserError: there are no such devices, or what compiles for them is not installed.
    """
    if name != HERE:
        there = target(name)
        return Chosen(there.devices, there.memory_limit, there)
    if not jax.distributed.is_initialized():
        initialize()
    found = local_devices()
    limit = memory_limit(jax.local_devices()[0])
    if limit is not None and found[0].platform == "cpu":
        limit //= len(jax.local_devices())  # they share the machine's memory
    return Chosen(found, limit, None)


def _load(path: str | Path, found: Collector) -> TrainingConfig | None:
    """The config, or None with a finding for each problem of the file."""
    cfg = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            cfg = load_config(path)
        except IllegalConfig as error:
            for key, problem in error.problems:
                found.add("error", key or "config", problem)
        except UserError as error:
            found.add("error", "config", str(error))
    for warning in caught:
        if warning.category is UserWarning:
            named = re.match(r"[\w.]+", str(warning.message))
            found.add("warning", f"model.{named[0]}" if named else "config", str(warning.message))
    return cfg


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
            _each_shard(paths, cfg.model.vocab_size, name, found)
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
        if not found.failed("checkpoint_dir"):
            advice.check_disk(cfg, tag)
    for key, message in advice.notes(cfg, tag, inspected):
        found.add("note", key, message)


def _each_shard(paths: str | list[str], vocab_size: int, name: str, found: Collector) -> None:
    """After the first error of the data, those of the other paths and shards."""
    before = len(found.findings)
    for path in [paths] if isinstance(paths, str) else paths:
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
    program = fit.program
    arguments = None if program is None else program.arguments
    temporaries = None if program is None else program.temporaries
    return Report(
        findings,
        devices,
        Memory(arguments, temporaries, fit.needed, fit.limit),
        None if program is None else program.attention,
        None if program is None else program.collectives,
        fit.flops_per_step,
        fit.compile_seconds,
        fit.largest_batch_size,
    )
