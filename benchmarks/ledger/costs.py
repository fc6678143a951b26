"""Kernels and FLOPs of an optimized program, counted from its text.

XLA's own count takes a loop's body once, and there is none for a GPU. Here a body counts as often
as the loop runs. What a custom kernel computes inside (attention) cannot be seen and is left out.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

from light_jax.reporting.hlo import Instruction, called_by, computations_of, trip_count

# Custom calls that launch nothing: buffers, other views of them, halves of a collective.
NO_KERNEL = re.compile(
    r"AllocateBuffer|\w*Bitcast|AssumeGatherIndicesInBound|AsyncCollective\w*|Sharding|"
    r"annotate_device_placement|SPMD\w*|\w*TopK\w*Placeholder"
)
ARITHMETIC = re.compile(
    "abs|add|cbrt|ceil|compare|cosine|divide|erf|exponential|exponential-minus-one|floor|log|"
    "log-plus-one|logistic|maximum|minimum|multiply|negate|power|remainder|round-nearest-afz|"
    "round-nearest-even|rsqrt|select|sign|sine|sqrt|subtract|tan|tanh"
)

_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<= ]*)\]")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_CONTRACTED = re.compile(r"\blhs_contracting_dims=\{([\d,]*)\}")
_CONTRACTED_BY_LIBRARY = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')
_LABELS = re.compile(r"\bdim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"\bwindow=\{([^}]*)\}")

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one step on one device."""

    fusions: int
    custom_calls: int
    matmul_flops: float
    other_flops: float  # one for each element of arithmetic

    @property
    def matmul_share(self) -> float:
        return self.matmul_flops / max(self.matmul_flops + self.other_flops, 1.0)


def costs_of(text: str) -> Costs:
    """What the optimized program `text` launches and computes."""
    computations, entry = computations_of(text)
    totals = {"fusions": 0.0, "custom_calls": 0.0, "matmul_flops": 0.0, "other_flops": 0.0}
    _add(computations, entry, 1, False, totals)
    return Costs(
        int(totals["fusions"]),
        int(totals["custom_calls"]),
        totals["matmul_flops"],
        totals["other_flops"],
    )


def _add(
    computations: dict[str, list[Instruction]],
    name: str,
    times: int,
    is_fused: bool,
    totals: dict[str, float],
) -> None:
    """Add what runs when the computation runs `times` times; a fusion's inside launches nothing."""
    shapes: dict[str, Shape] = {}
    for instruction in computations.get(name, []):
        shapes[instruction.name] = _shape(instruction.result)
        operation, inner = instruction.operation, times
        if operation == "fusion" and not is_fused:
            totals["fusions"] += times
        if operation == "custom-call" and not is_fused and _is_kernel(instruction):
            totals["custom_calls"] += times
        totals["matmul_flops"] += times * _matmul_flops(instruction, shapes)
        if ARITHMETIC.fullmatch(operation):
            totals["other_flops"] += times * math.prod(_shape(instruction.result))
        elif operation in ("reduce", "reduce-window"):
            totals["other_flops"] += times * math.prod(_operand_shapes(instruction, shapes)[0])
        if operation == "while":
            inner *= trip_count(instruction, computations)
        for called in called_by(instruction):
            _add(computations, called, inner, is_fused or operation == "fusion", totals)


def _is_kernel(instruction: Instruction) -> bool:
    target = _TARGET.search(instruction.text)
    return target is not None and NO_KERNEL.fullmatch(target[1]) is None


def _shape(result: str) -> Shape:
    """The sizes of a type; of a tuple those of its first array."""
    found = _SHAPE.search(result)
    if found is None:
        return ()
    return tuple(int(size.strip("<= ")) for size in found[2].split(",") if size.strip())


def _operand_shapes(instruction: Instruction, shapes: dict[str, Shape]) -> list[Shape]:
    """By the instructions that make them, earlier in the computation."""
    return [shapes.get(name, ()) for name in instruction.operands] or [()]


def _matmul_flops(instruction: Instruction, shapes: dict[str, Shape]) -> float:
    """2 for each multiplication of a dot, of a library's matmul, or of a TPU's convolution."""
    if instruction.operation == "convolution":
        return _convolution_flops(instruction, shapes)
    if instruction.operation == "dot":
        contracted = _CONTRACTED.search(instruction.text)
    elif instruction.operation == "custom-call":
        contracted = _CONTRACTED_BY_LIBRARY.search(instruction.text)
    else:
        return 0.0
    if contracted is None:
        return 0.0
    lhs = _operand_shapes(instruction, shapes)[0]
    sizes = [lhs[int(axis)] for axis in re.findall(r"\d+", contracted[1]) if int(axis) < len(lhs)]
    return 2.0 * math.prod(_shape(instruction.result)) * math.prod(sizes)


def _convolution_flops(instruction: Instruction, shapes: dict[str, Shape]) -> float:
    """A TPU's matmul is a convolution, its batch a window of which one place is not padding."""
    labels = _LABELS.search(instruction.text)
    operands = _operand_shapes(instruction, shapes)
    if labels is None or len(operands) < 2:
        return 0.0
    of_input = dict(zip(labels[1], operands[0], strict=False))
    of_kernel = dict(zip(labels[2], operands[1], strict=False))
    of_output = dict(zip(labels[3], _shape(instruction.result), strict=False))
    window = _window(instruction.text)
    spatial = [label for label in labels[3] if label.isdigit()]
    products = math.prod(
        _pairs(of_input[label], of_output[label], int(label), window) for label in spatial
    )
    return 2.0 * products * of_output["b"] * of_output["f"] * of_kernel["i"]


def _window(text: str) -> dict[str, list[str]]:
    found = _WINDOW.search(text)
    fields = [] if found is None else [field.split("=") for field in found[1].split()]
    return {key: value.split("x") for key, value in fields}


def _pairs(inputs: int, outputs: int, axis: int, window: dict[str, list[str]]) -> int:
    """(place of the output, place of the window) along an axis that meet a number of the input."""

    def field(name: str, default: str) -> str:
        return window[name][axis] if name in window else default

    size, stride = int(field("size", "1")), int(field("stride", "1"))
    before = int(field("pad", "0_0").split("_")[0])
    spread, between = int(field("lhs_dilate", "1")), int(field("rhs_dilate", "1"))
    end = (inputs - 1) * spread
    places = (
        out * stride + place * between - before
        for out, place in itertools.product(range(outputs), range(size))
    )
    return sum(0 <= place <= end and place % spread == 0 for place in places)
