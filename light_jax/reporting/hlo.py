"""The text of a program that XLA has optimized: its computations and their instructions."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

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
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BOUND = re.compile(r" [su]\d+\[\]\S* constant\((\d+)\)")
_COUNTER = re.compile(r" [su]\d+\[\]\S* get-tuple-element\(.*\bindex=(\d+)")
_NAMED = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = ")
_OPERAND = re.compile(r"%([\w.\-]+)")


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
