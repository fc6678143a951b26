"""What is read of a compiled program, against what can be computed by hand."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from collective_loop import COLUMNS, ROWS, STEPS
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tiny_runs import IMPORTS, ROOT

from light_jax.parallel import targets
from light_jax.parallel.targets import compiling_for, target
from light_jax.reporting import hlo, program
from light_jax.reporting.program import read

pytestmark = pytest.mark.compiled_fully

HERE_8 = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
HAS_CUDA = any(importlib.util.find_spec(name) for name in targets._cuda_plugins())
SHARD = ROWS * COLUMNS * 4  # bytes on a device


PROGRAM = """
import jax, re
function = lambda x: jax.nn.softmax(jax.numpy.tanh(x @ x.T) + jax.numpy.sin(x).sum(), axis=-1) @ x
program = jax.jit(function).lower(jax.ShapeDtypeStruct((64, 64), "float32")).compile()
found = re.findall("^ .* = .*", re.sub(", metadata={.*?}", "", program.as_text()), re.MULTILINE)
"""


def test_a_module_marked_so_compiles_as_a_user_does():
    """Whatever conftest.py asks of XLA for the others."""
    here: dict[str, list[str]] = {}
    exec(PROGRAM, here)
    asked = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR")
    env = {name: value for name, value in os.environ.items() if name not in asked}
    script = [sys.executable, "-c", PROGRAM + "print(found)"]
    done = subprocess.run(script, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(here["found"])
    assert any(" fusion(" in line for line in here["found"])


def loop_on(where: str, **env: str) -> dict:
    """What is read of the program in tests/collective_loop.py."""
    script = [sys.executable, ROOT / "tests/collective_loop.py", where]
    done = subprocess.run(script, env=os.environ | IMPORTS | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "where, devices",
    [
        ("cpu", 8),
        pytest.param(
            "h100-4",
            4,
            marks=[
                pytest.mark.cuda,
                pytest.mark.skipif(not HAS_CUDA, reason="JAX's CUDA wheels are not installed"),
            ],
        ),
    ],
)
def test_collectives_of_a_loop_count_as_often_as_it_runs(where, devices):
    found = loop_on(where, **(HERE_8 if where == "cpu" else {}))
    assert found["collectives"] == {
        "all-gather": {"count": STEPS, "bytes": STEPS * devices * SHARD},
        "all-reduce": {"count": 1, "bytes": 4},
        **{
            kind: {"count": STEPS, "bytes": STEPS * SHARD}
            for kind in ("reduce-scatter", "all-to-all", "collective-permute")
        },
    }
    assert (found["attention"], found["attention_calls"]) == ("blocks", 0)
    # the loop's argument is donated; the results are it, the sum, and their table of two pointers
    assert (found["arguments"], found["aliased"]) == (SHARD, SHARD)
    assert found["outputs"] == SHARD + 4 + 2 * 8


def test_a_tpus_loops_have_their_trip_count_from_the_bound_of_the_counter():
    """So small a reduce-scatter is an all-reduce there, of which each device takes its part."""
    found = loop_on("v5e-4")["collectives"]
    assert found == {
        "all-gather": {"count": STEPS, "bytes": STEPS * 4 * SHARD},
        "all-reduce": {"count": STEPS + 1, "bytes": STEPS * 4 * SHARD + 4},
        "all-to-all": {"count": STEPS, "bytes": STEPS * SHARD},
        "collective-permute": {"count": STEPS, "bytes": STEPS * SHARD},
    }


def test_a_sum_over_one_device_exchanges_nothing():
    """A CPU's compiler leaves it in the program."""
    mesh = Mesh(jax.devices()[:1], ("x",))
    total = jax.shard_map(
        lambda x: jax.lax.psum(x, "x"),
        mesh=mesh,
        in_specs=PartitionSpec("x"),
        out_specs=PartitionSpec(),
    )
    compiled = jax.jit(total).lower(jax.ShapeDtypeStruct((8, 8), jnp.float32)).compile()
    assert "all-reduce" in compiled.as_text()
    assert read(compiled).collectives == {}


def test_splash_attention_is_known_by_its_kernels():
    """Forward, and two kernels backward; three times each."""
    heads = masks.MultiHeadMask([masks.CausalMask((128, 128))] * 2)
    kernel = splash.make_splash_mha(heads, head_shards=1, q_seq_shards=1)

    def loss(q_BNTH):
        def body(q_BNTH, _):
            return jax.vmap(kernel)(q_BNTH, q_BNTH, q_BNTH), None

        return jax.lax.scan(body, q_BNTH, None, length=3)[0].astype(jnp.float32).sum()

    there = target("v5e-1")
    whole = NamedSharding(Mesh(there.devices, ("x",)), PartitionSpec())
    q_BNTH = jax.ShapeDtypeStruct((2, 2, 128, 128), jnp.bfloat16, sharding=whole)
    with compiling_for(there):
        found = read(jax.jit(jax.grad(loss)).lower(q_BNTH).compile())
    assert (found.attention, found.attention_calls, found.collectives) == ("splash", 9, {})
    assert found.arguments == found.outputs == 2 * 2 * 128 * 128 * 2


def test_memory_and_costs_of_a_matmul():
    a = jax.ShapeDtypeStruct((64, 32), jnp.float32)
    b = jax.ShapeDtypeStruct((32, 16), jnp.float32)
    found = read(jax.jit(jnp.matmul).lower(a, b).compile())
    assert (found.arguments, found.outputs, found.aliased) == (
        (64 * 32 + 32 * 16) * 4,
        64 * 16 * 4,
        0,
    )
    assert found.flops == 2 * 64 * 32 * 16
    assert found.total == found.arguments + found.outputs + found.temporaries


@pytest.mark.parametrize(
    "result, num_bytes",
    [
        ("f32[8,64]{1,0}", 2048),
        ("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/u32[]{:S(2)}, s4[3])", 12 + 4 + 2),
        ("pred[7]", 7),
        ("f8e4m3fn[10]", 10),
        ("c64[2]", 16),
        ("f32[<=4,2]", 32),
        ("token[]", 0),
        ("()", 0),
    ],
)
def test_the_size_of_a_type(result, num_bytes):
    assert hlo.size_of(result) == num_bytes


# One collective in three fusions, as a TPU spreads it over other work; and a sum of which each
# device keeps a part. The same channel may be another collective's too.
ASYNCHRONOUS = """HloModule made_by_hand

%start (p: bf16[4,8]) -> bf16[8,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %gather.1 = bf16[8,8]{1,0} all-gather(%p), channel_id=1, dimensions={0}
}

%work (p: bf16[4,8]) -> bf16[8,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %gather.2 = bf16[8,8]{1,0:S(1)} all-gather(%p), channel_id=1, dimensions={0}
}

%all-reduce-scatter.1 (p: f32[8,8]) -> f32[4,8] {
  %p = f32[8,8]{1,0} parameter(0)
  %sum = f32[8,8]{1,0} all-reduce(%p), channel_id=1, to_apply=%add
  ROOT %part = f32[4,8]{1,0} dynamic-slice(%sum)
}

ENTRY %main (p: bf16[4,8]) -> f32[4,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  %a = bf16[8,8]{1,0} fusion(%p), kind=kCustom, calls=%start
  %b = bf16[8,8]{1,0} fusion(%p), kind=kCustom, calls=%work
  %r = (f32[8,8]{1,0}, f32[8,8]{1,0}) all-reduce-start(%b, %b), channel_id=2, to_apply=%add
  %d = (f32[8,8]{1,0}, f32[8,8]{1,0}) all-reduce-done(%r)
  ROOT %c = f32[4,8]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_an_asynchronous_collective_counts_once():
    kernels, collectives = program.counts_of(ASYNCHRONOUS)
    assert kernels == {}
    assert collectives == {
        "all-gather": program.Collective(1, 8 * 8 * 2),
        "all-reduce": program.Collective(1, 2 * 8 * 8 * 4),
        "reduce-scatter": program.Collective(1, 4 * 8 * 4),
    }


# A matmul whose operand is gathered step by step, as XLA makes it: two steps in one.
TWO_AT_ONCE = """HloModule made_by_hand

%condition (state: (f32[8,8], u32[])) -> pred[] {
  %end = u32[] constant(8)
  %state = (f32[8,8]{1,0}, u32[]) parameter(0)
  %counter = u32[] get-tuple-element(%state), index=1
  ROOT %go = pred[] compare(%counter, %end), direction=LT
}

%body (state: (f32[8,8], u32[])) -> (f32[8,8], u32[]) {
  %step = u32[] constant(2)
  %state = (f32[8,8]{1,0}, u32[]) parameter(0)
  %x = f32[8,8]{1,0} get-tuple-element(%state), index=0
  %counter = u32[] get-tuple-element(%state), index=1
  %y = f32[8,8]{1,0} collective-permute(%x), channel_id=1
  %z = f32[8,8]{1,0} collective-permute(%y), channel_id=2
  %next = u32[] add(%counter, %step)
  ROOT %result = (f32[8,8]{1,0}, u32[]) tuple(%z, %next)
}

ENTRY %main (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  %zero = u32[] constant(0)
  %first = (f32[8,8]{1,0}, u32[]) tuple(%x, %zero)
  %last = (f32[8,8]{1,0}, u32[]) while(%first), condition=%condition, body=%body
  ROOT %out = f32[8,8]{1,0} get-tuple-element(%last), index=0
}
"""


def test_a_counter_of_larger_steps_ends_its_loop_sooner():
    _, collectives = program.counts_of(TWO_AT_ONCE)
    assert collectives == {"collective-permute": program.Collective(4 * 2, 4 * 2 * 8 * 8 * 4)}
