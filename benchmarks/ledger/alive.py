"""What a device holds of gathered arrays at once, read from the schedule of a compiled program."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence

from light_jax.reporting.hlo import Instruction, called_by, computations_of, size_of

GATHER = "all-gather"

_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_INDEX = re.compile(r"\bindex=(\d+)")
_ARRAY = re.compile(r"\b[a-z]+\d*\w*\[[\d,<= ]*\]")
# Instructions whose result is one of their operands, or a part of it, under another name.
_VIEWS = ("get-tuple-element", "bitcast", "tuple", "opt-barrier", "optimization-barrier")

Computations = dict[str, list[Instruction]]


@dataclasses.dataclass(frozen=True)
class Gathered:
    """Of one device, in bytes."""

    largest: int  # the largest array that an all-gather makes
    alive: int  # of all that all-gathers make, what is alive at once at most


@dataclasses.dataclass(frozen=True)
class _Life:
    """An array that a gather makes: from the instruction that begins it to its last use."""

    array: str  # what tells it from others
    bytes: int
    first: int
    last: int


def gathered(text: str) -> Gathered:
    """What the scheduled program `text` gathers.

    A gather that XLA turned into a loop of permutes beside a matmul makes no whole array, and
    counts for nothing. An array that a loop hands on to its next turn counts to the end of its own.
    """
    computations, entry = computations_of(text)
    lives = {name: _lives(computations, name) for name in computations}
    largest = max((life.bytes for found in lives.values() for life in found), default=0)
    return Gathered(largest, _peak(computations, lives, entry))


def _peak(computations: Computations, lives: dict[str, list[_Life]], name: str) -> int:
    """The most bytes that are alive at once while a computation runs."""
    peak = 0
    for at, instruction in enumerate(computations.get(name, [])):
        here = sum(life.bytes for life in lives[name] if life.first <= at <= life.last)
        called = [] if instruction.operation == "fusion" else called_by(instruction)
        inside = max((_peak(computations, lives, each) for each in called), default=0)
        peak = max(peak, here + inside)
    return peak


def _lives(computations: Computations, name: str) -> list[_Life]:
    """Of the arrays that this computation's own instructions gather, each once."""
    instructions = computations[name]
    users = _users(instructions)
    found: dict[str, _Life] = {}
    for at, instruction in enumerate(instructions):
        for array, size, last in _made(computations, instructions, users, at, instruction):
            before = found.get(array)
            first = at if before is None else before.first
            last = last if before is None else max(last, before.last)
            found[array] = _Life(array, size, first, last)
    return list(found.values())


def _made(
    computations: Computations,
    instructions: Sequence[Instruction],
    users: dict[str, list[int]],
    at: int,
    instruction: Instruction,
) -> Iterator[tuple[str, int, int]]:
    """(which, bytes, last use) of the arrays that an instruction gathers, or goes on gathering."""
    operation = instruction.operation
    if operation in (GATHER, f"{GATHER}-done"):
        begun = instruction.operands[0] if operation != GATHER else instruction.name
        for index, shape in enumerate(_ARRAY.findall(instruction.result)):
            last = _last_use(instructions, users, at, None if operation == GATHER else index)
            yield f"{begun} {index}", size_of(shape), last
    elif operation == f"{GATHER}-start":
        done = instructions[users.get(instruction.name, [at])[0]]
        for index, shape in enumerate(_ARRAY.findall(done.result)):
            yield f"{instruction.name} {index}", size_of(shape), at
    elif operation == "fusion":  # a TPU spreads a gather over several, beside other work
        for gather in _gathers_in(computations, instruction):
            channel = _CHANNEL.search(gather.text)
            shape = _ARRAY.findall(gather.result)[0]
            shapes = _ARRAY.findall(instruction.result)
            lasts = [
                _last_use(instructions, users, at, index)
                for index, each in enumerate(shapes)
                if each == shape
            ]
            which = f"channel {channel[1] if channel else gather.name} {shape}"
            yield which, size_of(shape), max(lasts, default=at)


def _gathers_in(computations: Computations, fusion: Instruction) -> Iterator[Instruction]:
    for name in called_by(fusion):
        for instruction in computations.get(name, []):
            if instruction.operation == GATHER:
                yield instruction
            elif instruction.operation == "fusion":
                yield from _gathers_in(computations, instruction)


def _users(instructions: Sequence[Instruction]) -> dict[str, list[int]]:
    """By the name of a value, the places of the instructions that read it."""
    users: dict[str, list[int]] = {}
    for at, instruction in enumerate(instructions):
        for operand in instruction.operands:
            users.setdefault(operand, []).append(at)
    return users


def _last_use(
    instructions: Sequence[Instruction], users: dict[str, list[int]], at: int, element: int | None
) -> int:
    """Where the value made at `at` is last read, through views of it.

    Args:
        element: of the tuple that the value is; None, or any where it is no tuple, for all of it.
    """
    is_tuple = instructions[at].result.startswith("(")
    last = at
    for user in users.get(instructions[at].name, []):
        reader = instructions[user]
        index = _INDEX.search(reader.text) if reader.operation == "get-tuple-element" else None
        if is_tuple and element is not None and index is not None and int(index[1]) != element:
            continue
        last = max(last, user)
        if reader.operation in _VIEWS:
            last = max(last, _last_use(instructions, users, user, None))
    return last
