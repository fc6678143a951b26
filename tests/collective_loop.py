"""A small program with a known number of each collective; prints what `reporting.program` reads.

python tests/collective_loop.py cpu | TARGET
"""

from __future__ import annotations

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from light_jax.parallel.targets import compiling_for, target
from light_jax.reporting.program import read

STEPS, ROWS, COLUMNS = 5, 16, 8  # a device holds [ROWS, COLUMNS] float32


def compiled_on(devices):
    count = len(devices)
    mesh = Mesh(np.array(devices), ("x",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("x")

    def one_device(x):
        def body(x, _):
            x = lax.psum_scatter(jnp.sin(lax.all_gather(x, "x", tiled=True)), "x", tiled=True)
            x = lax.all_to_all(jnp.sin(x), "x", 0, 0, tiled=True)
            return lax.ppermute(jnp.sin(x), "x", [(i, (i + 1) % count) for i in range(count)]), None

        x, _ = lax.scan(body, x, None, length=STEPS)
        return x, lax.psum(jnp.sum(x), "x")

    step = jax.shard_map(one_device, mesh=mesh, in_specs=rows, out_specs=(rows, PartitionSpec()))
    x = jax.ShapeDtypeStruct(
        (count * ROWS, COLUMNS), jnp.float32, sharding=NamedSharding(mesh, rows)
    )
    return jax.jit(step, donate_argnums=0).lower(x).compile()


if __name__ == "__main__":
    there = None if sys.argv[1] == "cpu" else target(sys.argv[1])
    with compiling_for(there):
        compiled = compiled_on(jax.devices() if there is None else there.devices)
    print(json.dumps(dataclasses.asdict(read(compiled))))
