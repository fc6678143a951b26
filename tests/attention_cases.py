"""Attention, forward and backward, on real and virtual devices and compiled for others.

python tests/attention_cases.py devices | TARGET...

`devices` prints, for each mesh of eight CPU devices, how far attention there is from that of one.
Otherwise a line for each target and case: what the compiled program calls.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import sys
from importlib.metadata import version
from typing import Any

from tiny_runs import devices

if __name__ == "__main__" and sys.argv[1] == "devices":
    os.environ |= {"JAX_PLATFORMS": "cpu"} | devices(8)

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from light_jax.models.kernels import flash
from light_jax.models.placement import Placement
from light_jax.models.transformer.attend import attend
from light_jax.models.transformer.positional import alibi_slopes
from light_jax.parallel.targets import compiling_for, target
from light_jax.reporting.program import read
from light_llm.models.transformer.mask import Span

AXES = ("data", "fsdp", "tensor")
CAUSAL, BIDIRECTIONAL = Span(None, 0), Span(None, None)
# Here compiling takes all the time: a CPU runs these programs in milliseconds.
COMPILED_FAST: dict[str, bool | int] = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}
if version("jaxlib").startswith("0.10."):  # later ones do not know it, and refuse what they do not
    COMPILED_FAST["xla_cpu_use_fusion_emitters"] = False
RESULTS = ("out", "dq", "dk", "dv")


@dataclasses.dataclass(frozen=True)
class Case:
    """Attention of N query and K kv heads over T positions; `complex` q and k are 2H wide."""

    T: int = 256
    N: int = 2
    K: int = 2
    H: int = 64
    span: Span = CAUSAL
    alibi: bool = False
    complex: bool = False
    documents: bool = False
    B: int = 1

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of q, k, v and the gradient of the result."""
        wide = 2 * self.H if self.complex else self.H
        heads = ((self.N, wide), (self.K, wide), (self.K, self.H), (self.N, self.H))
        return [(self.B, self.T, *head) for head in heads]

    @property
    def options(self) -> dict[str, Any]:
        slopes_N = jnp.asarray(alibi_slopes(self.N)) if self.alibi else None
        back_BT = jnp.asarray(self.back_BT) if self.documents else None
        return {
            "scale": self.H**-0.5,
            "span": self.span,
            "slopes_N": slopes_N,
            "back_BT": back_BT,
        }

    @property
    def back_BT(self) -> np.ndarray:
        """Documents of random lengths, around 40 tokens, in each row."""
        begins_BT = np.random.default_rng(self.T).random((self.B, self.T)) < 1 / 40
        columns_T = np.arange(self.T)
        first_BT = np.maximum.accumulate(np.where(begins_BT, columns_T, 0), axis=1)
        return (columns_T - first_BT).astype(np.int32)

    def inputs(self) -> list[jax.Array]:
        keys = jax.random.split(jax.random.key(self.T), 4)
        return [
            jax.random.normal(key, shape, jnp.bfloat16)
            for key, shape in zip(keys, self.shapes, strict=True)
        ]


# Copies of kv heads, a count of heads that does not divide, rows of heads on their own.
MESHES = [
    ((8, 1, 1), Case(B=8, T=128, N=8, K=2, H=16, documents=True)),
    ((1, 2, 4), Case(B=8, T=128, N=8, K=2, H=16, documents=True)),
    ((1, 1, 8), Case(B=1, T=128, N=12, K=4, H=16, alibi=True)),
    ((1, 1, 2), Case(B=1, T=128, N=6, K=3, H=16, span=Span(7, 0))),
]
CUDNN = [
    ((8, 1, 1), Case(N=8, K=2)),
    ((1, 8, 1), Case(N=8, K=2, span=BIDIRECTIONAL)),
    ((1, 2, 4), Case(N=8, K=2)),
    ((1, 2, 4), Case(N=8, K=2, span=Span(100, 0))),
    ((1, 2, 4), Case(N=8, K=2, alibi=True)),
    ((1, 2, 4), Case(N=8, K=8, complex=True)),
    ((1, 1, 8), Case(N=12, K=12, H=40)),
    ((8, 1, 1), Case(N=4, K=1, H=36, T=131, span=Span(9, 0), alibi=True)),
    ((8, 1, 1), Case(N=4, K=4, H=128, T=8192)),
    ((8, 1, 1), Case(N=4, K=4, H=128, complex=True)),
    ((8, 1, 1), Case(N=4, K=4, H=128, alibi=True)),
    ((8, 1, 1), Case(N=4, K=4, H=256)),
]
SPLASH = [
    ((1, 2, 2), Case(N=6, K=3, H=40, T=200, span=Span(100, 0), alibi=True)),
    ((2, 1, 2), Case(N=8, K=2, H=128, T=200, span=BIDIRECTIONAL, documents=True)),
]


def placement(
    devices: list[Any], sizes: tuple[int, ...] = (1, 1, 1), num_heads: int = 1
) -> Placement:
    used = np.array(devices[: math.prod(sizes)]).reshape(sizes)
    mesh = Mesh(used, AXES, axis_types=(AxisType.Auto,) * 3)
    heads = "tensor" if num_heads % sizes[2] == 0 else None
    return Placement(mesh=mesh, batch_axes=("data", "fsdp"), head_axis=heads)


def with_gradients(function: Any, q: Any, k: Any, v: Any, grad: Any) -> tuple[jax.Array, ...]:
    """The result and the gradients of q, k and v."""
    out, backward = jax.vjp(function, q, k, v)
    return (out, *backward(grad))


def blocks(case: Case) -> Any:
    """The portable path: blocks of queries."""
    return jitted(functools.partial(attend, placement=Placement(), **case.options))


def kernel(name: flash.Kernel, where: Placement, case: Case) -> Any:
    return jitted(functools.partial(flash.attend, name, where, **case.options))


def jitted(function: Any) -> Any:
    options = COMPILED_FAST if jax.default_backend() == "cpu" else None
    return jax.jit(functools.partial(with_gradients, function), compiler_options=options)


@functools.cache
def on_one(case: Case) -> tuple[jax.Array, ...]:
    return kernel("splash", placement(jax.devices(), (1, 1, 1), case.N), case)(*case.inputs())


def on_devices() -> None:
    for sizes, case in MESHES:
        ours, many = case.inputs(), placement(jax.devices(), sizes, case.N)
        one = on_one(case)
        assert many.mesh is not None
        rows = NamedSharding(many.mesh, PartitionSpec(many.batch_axes))
        cut = [jax.device_put(x, rows) for x in ours]
        both = zip(RESULTS, one, kernel("splash", many, case)(*cut), strict=True)
        print(json.dumps({name: difference(x, y) for name, x, y in both}))


def difference(x: jax.Array, y: jax.Array) -> float:
    """The largest, relative to the largest number."""
    a, b = np.asarray(x, np.float32), np.asarray(y, np.float32)
    return float(np.abs(a - b).max() / np.abs(a).max())


def compiled(name: str, sizes: tuple[int, ...], case: Case) -> dict[str, Any]:
    """What the program of a case calls on a target, and the kernel that is chosen there."""
    there = target(name)
    where = placement(there.devices, sizes, case.N)
    assert where.mesh is not None
    case = dataclasses.replace(case, B=2 * sizes[0] * sizes[1])
    rows = NamedSharding(where.mesh, PartitionSpec(where.batch_axes))
    inputs = [jax.ShapeDtypeStruct(x, jnp.bfloat16, sharding=rows) for x in case.shapes]
    chosen = flash.kernel_for(
        where,
        dtype=jnp.bfloat16,
        length=case.T,
        head_dim=case.shapes[0][-1],
        span=case.span,
        alibi=case.alibi,
        documents=case.documents,
    )
    if chosen is None:
        return {"kernel": None}
    function = functools.partial(
        with_gradients, functools.partial(attend, placement=where, **case.options)
    )
    with compiling_for(there):
        program = jax.jit(function).lower(*inputs).compile()
    return {
        "kernel": chosen,
        "calls": read(program).attention_calls,
        "cudnn": re.findall(r"= (.* custom-call\(.*__cudnn\$fmha.*)", program.as_text()),
    }


if __name__ == "__main__":
    if sys.argv[1] == "devices":
        on_devices()
    else:
        for name in sys.argv[1:]:
            for sizes, case in CUDNN:
                print(json.dumps(compiled(name, sizes, case)))
