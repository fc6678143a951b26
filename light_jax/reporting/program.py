"""What a compiled program takes and does, read from what XLA says of it.

The text of the optimized program names its collectives and kernels. A loop's body counts as often
as the loop runs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax

from light_jax.reporting.hlo import Instruction, called_by, computations_of, size_of, trip_count
from light_llm.errors import UserError

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# A TPU's fusion of an all-reduce with the slice of each device; its result is the slice.
REDUCE_SCATTER_FUSION = "all-reduce-scatter"
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
# Sums over a mesh axis of one device; a CPU's compiler leaves them in, and nothing is exchanged.
_ALONE = re.compile(r"\breplica_groups=(?:\{\{\d+\}(?:,\{\d+\})*\}|\[\d+,1\]<)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All operations of one kind."""

    count: int
    bytes: int  # of their results, on one device


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program on one device; memory in bytes."""

    arguments: int
    temporaries: int
    outputs: int
    aliased: int  # of the outputs that lie in donated arguments
    attention: str  # the kernel: cudnn, splash or blocks
    attention_calls: int  # of that kernel, forward and backward; 0 of blocks
    collectives: dict[str, Collective]  # by kind; only those that there are
    bytes_accessed: float | None  # as XLA counts, which takes a loop's body once
    flops: float | None  # likewise

    @property
    def total(self) -> int:
        """Bytes that it takes while it runs."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


def read(compiled: Any) -> Program:
    """What a `jax.stages.Compiled` takes and does.

    Raises:
        UserError: its compiler does not say what memory it takes.
    """
    memory = compiled.memory_analysis()
    if memory is None:
        raise UserError("the compiler for these devices does not say what memory a program takes")
    kernels, collectives = counts_of(compiled.as_text())
    attention = next((name for name in ("cudnn", "splash") if kernels.get(name)), "blocks")
    costs = compiled.cost_analysis() or {}
    return Program(
        arguments=memory.argument_size_in_bytes,
        temporaries=temporaries_of(compiled, memory),
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        attention=attention,
        attention_calls=kernels.get(attention, 0),
        collectives=collectives,
        bytes_accessed=costs.get("bytes accessed"),
        flops=costs.get("flops"),
    )


def temporaries_of(compiled: Any, memory: Any) -> int:
    """Bytes that a `jax.stages.Compiled` takes beside its arguments and outputs.

    Args:
        memory: its `memory_analysis()`.
    """
    sharding = jax.tree.leaves(compiled.input_shardings)[0]
    if next(iter(sharding.device_set)).platform != "tpu":
        return int(memory.temp_size_in_bytes)
    return temporaries_on_tpu(
        temporaries=memory.temp_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        arguments=memory.argument_size_in_bytes,
        new_outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    )


def temporaries_on_tpu(*, temporaries: int, peak: int, arguments: int, new_outputs: int) -> int:
    """The smaller of two sizes in bytes that a TPU's compiler gives; neither is right alone.

    It accepts or refuses a program by its peak. The size of the temporaries can be more: libtpu
    0.0.42 accepted 6.8 GiB of arguments and 13.6 GiB of temporaries for a v5e's 15.75 GiB, where
    the peak was 15.3. Version 0.0.52 gives nearly one number for both. But the peak counts vector
    memory too, at most 128 MiB, where a small program has all its temporaries.
    """
    return max(0, min(temporaries, peak - arguments - new_outputs))


@dataclasses.dataclass(frozen=True)
class _Found:
    """A collective or a kernel that is met on the way through the program."""

    kind: str
    times: int
    bytes: int


def counts_of(text: str) -> tuple[dict[str, int], dict[str, Collective]]:
    """(calls by attention kernel, collectives by kind) of the optimized program."""
    computations, entry = computations_of(text)
    kernels: dict[str, int] = {}
    collectives: dict[str, Collective] = {}
    for found in _walk(computations, entry, 1, None):
        if found.kind in COLLECTIVES:
            before = collectives.get(found.kind, Collective(0, 0))
            collectives[found.kind] = Collective(
                before.count + found.times, before.bytes + found.times * found.bytes
            )
        else:
            kernels[found.kind] = kernels.get(found.kind, 0) + found.times
    return kernels, {kind: collectives[kind] for kind in COLLECTIVES if kind in collectives}


def _walk(
    computations: dict[str, list[Instruction]],
    name: str,
    times: int,
    seen: set[tuple[str, str, int]] | None,
) -> Iterator[_Found]:
    """What runs when the computation runs `times` times.

    Args:
        seen: in a fusion, the collectives that its siblings hold. A TPU spreads one over several
            fusions, so that other work runs meanwhile; each holds the whole instruction.
    """
    parts: set[tuple[str, str, int]] = set() if seen is None else seen
    for instruction in computations.get(name, []):
        found = _found(instruction, times)
        channel = _CHANNEL.search(instruction.text)
        if found is not None:
            key = (found.kind, channel[1] if channel else "", found.bytes)
            if seen is None or channel is None or key not in seen:
                yield found
            parts.add(key)
            continue
        inner = times
        if instruction.operation == "while":
            inner *= trip_count(instruction, computations)
        fused = parts if instruction.operation == "fusion" else None
        for called in called_by(instruction):
            yield from _walk(computations, called, inner, fused)


def _found(instruction: Instruction, times: int) -> _Found | None:
    """The collective or kernel that an instruction is. An asynchronous one counts where it ends."""
    operation = instruction.operation
    kind = operation.removesuffix("-done")
    if kind in COLLECTIVES and not _ALONE.search(instruction.text):
        return _Found(kind, times, size_of(instruction.result))
    if operation == "fusion" and any(
        called.startswith(REDUCE_SCATTER_FUSION) for called in called_by(instruction)
    ):
        return _Found("reduce-scatter", times, size_of(instruction.result))
    target = _TARGET.search(instruction.text) if operation == "custom-call" else None
    if target is not None and target[1].startswith("__cudnn$fmha"):
        return _Found("cudnn", times, 0)
    if target is not None and target[1] == "tpu_custom_call" and "splash" in instruction.text:
        return _Found("splash", times, 0)
    return None
