"""One work compiled in this process, and what the compiler says of it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import resource
import time
from collections.abc import Iterator
from typing import Any

import jax

from ledger.alive import gathered
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
    from light_jax.parallel.sharding import make_mesh
    from light_jax.parallel.targets import compiling_for, target
    from light_jax.reporting.flops import flops_per_token
    from light_jax.reporting.program import read
    from light_jax.training.compiled import attempt, blank_state

    cfg, there = work.config(), target(work.target)
    start = time.process_time()
    with compiling_for(there), _unrolled() if unrolled else contextlib.nullcontext():
        mesh = make_mesh(cfg.mesh, there.devices)
        state, shardings = blank_state(cfg, mesh)
        made = attempt(cfg, mesh, shardings, state)
    seconds, memory = time.process_time() - start, made.memory
    text = None if made.step is None else made.step.as_text()
    num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    flops = flops_per_token(cfg.model, num_params, cfg.seq_len) * cfg.tokens_per_step
    return {
        "device": there.kind,
        "devices": len(there.devices),
        "versions": versions(VERSIONS),
        "compile_seconds": made.seconds,
        "compile_cpu_seconds": seconds,
        "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "fits": memory is not None and memory.fits(there.memory_limit),
        "needed": None if memory is None else memory.total,
        "limit": there.memory_limit,
        "model_flops": flops / len(there.devices),
        "program": None if made.step is None else dataclasses.asdict(read(made.step)),
        "costs": None if text is None else dataclasses.asdict(costs_of(text)),
        "gathered": None if text is None else dataclasses.asdict(gathered(text)),
    }


def versions(names: tuple[str, ...]) -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@contextlib.contextmanager
def _unrolled() -> Iterator[None]:
    """Inside, layers are unrolled where they would be one loop."""
    from light_jax.training import step

    placement_of = step.placement_of

    def unrolled(*args: Any) -> Any:
        return dataclasses.replace(placement_of(*args), scanned=False)

    step.placement_of = unrolled
    try:
        yield
    finally:
        step.placement_of = placement_of
