"""One work compiled in this process, and what the compiler says of it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import resource
import time
import unittest.mock
from collections.abc import Callable, Iterator
from typing import Any

from ledger.costs import costs_of
from ledger.works import Work

VERSIONS = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "nvidia-cudnn-cu13")


def compile_work(work: Work, unrolled: bool) -> dict[str, Any]:
    """The record of a work; its keys are those of the JSON lines that the table is made of.

    Args:
        unrolled: layers one after another, although they would be one loop on these devices.

    Raises:
        UserError: it does not compile, and memory is not why.
    """
    from light_jax.parallel.targets import compiling_for, target
    from light_jax.training.fit import measure

    cfg, there = work.config(), target(work.target)
    texts: list[str] = []
    start = time.process_time()
    with compiling_for(there), _watched(texts.append, unrolled):
        fit = measure(cfg, there.devices, there.memory_limit, largest=False)
    seconds = time.process_time() - start
    return {
        "device": there.kind,
        "devices": len(there.devices),
        "versions": versions(VERSIONS),
        "compile_seconds": fit.compile_seconds,
        "compile_cpu_seconds": seconds,
        "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "fits": fit.fits,
        "needed": fit.needed,
        "limit": fit.limit,
        "model_flops": fit.flops_per_step / len(there.devices),
        "program": None if fit.program is None else dataclasses.asdict(fit.program),
        "costs": dataclasses.asdict(costs_of(texts[-1])) if texts else None,
    }


def versions(names: tuple[str, ...]) -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@contextlib.contextmanager
def _watched(keep_text: Callable[[str], None], unrolled: bool) -> Iterator[None]:
    """Inside, `keep_text` is given the program's text, and layers are unrolled where asked for."""
    from light_jax.training import fit, step

    read, placement_of = fit.read, step.placement_of

    def reading(compiled: Any) -> Any:
        keep_text(compiled.as_text())
        return read(compiled)

    def placing(*args: Any) -> Any:
        placement = placement_of(*args)
        return dataclasses.replace(placement, scanned=False) if unrolled else placement

    with (
        unittest.mock.patch.object(fit, "read", reading),
        unittest.mock.patch.object(step, "placement_of", placing),
    ):
        yield
