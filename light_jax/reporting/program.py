"""What a compiled program takes and does, read from what XLA says of it.

The text of the optimized program names its collectives and kernels. A loop's body counts as often
as the loop runs.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import jax

from light_llm.errors import UserError

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# A TPU's fusion of an all-reduce with the slice of each device; its result is the slice.
REDUCE_SCATTER_FUSION = "all-reduce-scatter"
BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}  # others end in their bits

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?[\w.\-]+ = ")
_END = re.compile(r"\}(, execution_thread=.*)?$")
_OPERATION = re.compile(r"\s*([\w\-]+)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<= ]*)\]")
_CALLED = re.compile(r"\b(?:calls|body|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_BODY = re.compile(r"\bbody=%?([\w.\-]+)")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# Sums over a mesh axis of one device; a CPU's compiler leaves them in, and nothing is exchanged.
_ALONE = re.compile(r"\breplica_groups=(?:\{\{\d+\}(?:,\{\d+\})*\}|\[\d+,1\]<)")
_BOUND = re.compile(r" [su]\d+\[\]\S* constant\((\d+)\)")
_COUNTER = re.compile(r" [su]\d+\[\]\S* get-tuple-element\(.*\bindex=(\d+)")
_NAMED = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = ")
_OPERAND = re.compile(r"%([\w.\-]+)")


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
class Instruction:
    result: str  # its type
    operation: str
    text: str  # the whole line

    @property
    def name(self) -> str:
        named = _NAMED.match(self.text)
        return named[1] if named else ""

    @property
    def operands(self) -> list[str]:
        """Their names."""
        _, _, rest = self.text.partition(f" {self.operation}(")
        return _OPERAND.findall(rest.partition(")")[0])


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


def computations_of(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The instructions of each computation by its name, and the name of the first to run."""
    computations: dict[str, list[Instruction]] = {}
    entry, inside = "", None
    for line in _whole_lines(text):
        if header := _HEADER.match(line):
            inside = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif inside is not None and (start := _INSTRUCTION.match(line)):
            end = _end_of_type(line, start.end())
            if operation := _OPERATION.match(line, end):
                inside.append(Instruction(line[start.end() : end], operation[1], line))
    return computations, entry


def _whole_lines(text: str) -> Iterator[str]:
    """One a header or instruction. A Pallas kernel's metadata breaks its instruction's line."""
    whole = ""
    for line in text.splitlines():
        if _HEADER.match(line) or _INSTRUCTION.match(line) or _END.match(line):
            yield whole
            whole = line
        else:
            whole += line
    yield whole


def _end_of_type(line: str, start: int) -> int:
    """Where the type that begins at `start` ends: a tuple's at its bracket, others at a space."""
    if line[start] != "(":
        end = line.find(" ", start)
        return len(line) if end < 0 else end
    depth = 0
    for at in range(start, len(line)):
        depth += (line[at] == "(") - (line[at] == ")")
        if depth == 0:
            return at + 1
    return len(line)


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


def called_by(instruction: Instruction) -> list[str]:
    """The computations that an instruction runs. All branches of a choice count."""
    if "to_apply=" in instruction.text and instruction.operation != "call":
        return []  # how two numbers of a sum become one
    called = _CALLED.findall(instruction.text)
    for branches in _BRANCHES.findall(instruction.text):
        called += [branch.strip().lstrip("%") for branch in branches.split(",")]
    return called


def trip_count(loop: Instruction, computations: dict[str, list[Instruction]]) -> int:
    """How often a loop runs: as XLA states it, or from its counter; 1 where neither is known.

    A TPU's program states none. The counter begins at 0. Its steps are of 1 in jax's own loops, and
    of 2 in those that XLA makes of a matmul and a collective.
    """
    if stated := _TRIP_COUNT.search(loop.text):
        return int(stated[1])
    condition, body = _CONDITION.search(loop.text), _BODY.search(loop.text)
    if condition is None or body is None:
        return 1
    lines = [i.text for i in computations.get(condition[1], [])]
    bounds = [int(bound[1]) for line in lines if (bound := _BOUND.search(line))]
    inner = [
        i.text for line in lines for c in _CALLED.findall(line) for i in computations.get(c, [])
    ]
    if len(bounds) == 1 and any("direction=LT" in line for line in [*lines, *inner]):
        counters = [int(index[1]) for line in lines if (index := _COUNTER.search(line))]
        step = _step(computations.get(body[1], []), counters[0]) if len(counters) == 1 else 1
        return -(-bounds[0] // step)
    return 1


def _step(body: list[Instruction], counter: int) -> int:
    """What a loop's body adds to the element `counter` of its tuple; 1 where that is not plain."""
    by_name = {i.name: i for i in body}
    results = [i for i in body if i.text.lstrip().startswith("ROOT ") and i.operation == "tuple"]
    names = results[0].operands if results else []
    added = by_name.get(names[counter]) if counter < len(names) else None
    if added is None or added.operation != "add":
        return 1
    operands = [by_name[name].text for name in added.operands if name in by_name]
    steps = [int(bound[1]) for text in operands if (bound := _BOUND.search(text))]
    return max(1, steps[0]) if len(steps) == 1 else 1


def size_of(result: str) -> int:
    """Bytes of a type as HLO writes it, such as `(f32[8,64]{1,0}, bf16[])`."""
    bits = 0
    for dtype, shape in _ARRAY.findall(result):
        width = BITS.get(dtype)
        if width is None:
            digits = re.search(r"\d+", dtype)
            width = int(digits[0]) if digits else 0
        elements = math.prod(int(size.strip("<= ")) for size in shape.split(",") if size.strip())
        bits += -(-elements * width // 8) * 8
    return bits // 8
