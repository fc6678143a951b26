"""Devices that are not here: known by name, and programs compile for them."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tiny_runs import IMPORTS, ROOT, contents

from light_jax.parallel import targets
from light_jax.parallel.cuda import memory_fraction
from light_jax.parallel.sharding import make_mesh
from light_jax.sections import MeshConfig
from light_llm.errors import UserError

pytestmark = pytest.mark.compiled_fully

CACHE_ALL = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
HAS_CUDA = any(importlib.util.find_spec(name) for name in targets._cuda_plugins())
needs_cuda = pytest.mark.skipif(not HAS_CUDA, reason="JAX's CUDA wheels are not installed")


def refusal(name: str) -> str:
    with pytest.raises(UserError) as error:
        targets.target(name)
    return str(error.value)


@pytest.mark.parametrize(
    "name, kind, count, gib",
    [
        ("v5e-1", "TPU v5 lite", 1, 15.75),
        ("v5e-16", "TPU v5 lite", 16, 15.75),
        ("v5p-8", "TPU v5", 4, 95.74),
        ("v6e-8", "TPU v6 lite", 8, 31.25),
        ("tpu7x-8", "TPU7x", 8, 94.75),
    ],
)
def test_a_tpu_is_known_by_its_cloud_name(name, kind, count, gib):
    found = targets.target(name)
    assert (found.name, found.kind, len(found.devices)) == (name, kind, count)
    assert found.memory_limit == pytest.approx(gib * 2**30)
    assert targets.device_of(found.kind) is found.device


def test_a_mesh_need_not_follow_the_axes_of_the_tpu():
    """Eight of 4 x 4 x 4 chips are neither a row nor a layer."""
    mesh = make_mesh(MeshConfig(fsdp=8), targets.target("v5p-128").devices)
    assert dict(mesh.shape) == {"data": 8, "fsdp": 8, "tensor": 1}
    assert len(set(mesh.devices.flat)) == 64


@pytest.mark.parametrize("name", ["v5e-1", "v5p-8", "v6e-1"])
def test_the_limit_of_a_tpu_is_the_one_that_its_compiler_refuses_at(name):
    found = targets.target(name)
    everywhere = NamedSharding(Mesh(found.devices[:1], ("x",)), PartitionSpec())
    too_large = jax.ShapeDtypeStruct((256, 2**15, 2**15), jnp.float32, sharding=everywhere)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED") as error:
        jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x)).lower(too_large).compile()
    limit = re.search(r"exceeds available HBM \(([\d.]+)G\)", str(error.value))
    assert found.memory_limit == pytest.approx(float(limit[1]) * 2**30)


def test_each_slice_of_the_table_has_as_many_devices_as_its_name_says():
    for device in targets.table():
        chips = 2 if device.name in ("v5p", "tpu7x") else 1  # TensorCores, and those of a chip
        shown = 1 if device.name == "tpu7x" else chips  # TensorCores of one jax device
        for size in device.sizes if device.tpu is not None else ():
            assert len(targets.target(f"{device.name}-{size}").devices) == size // shown


def test_an_unknown_name_is_told_the_nearest_and_all():
    message = refusal("v5-8")
    assert "devices='v5-8' is not known; the nearest are v5p-8, v5e-8" in message
    assert all(f"{row.name}-N" in message for row in targets.table() if row.sizes)
    assert "v5e comes in 1, 4, 8, 16, 32, 64, 128, 256" in refusal("v5e-3")
    assert "h100 comes in 1 to 8, and multiples of 8" in refusal("h100-9")
    for name in ("", "-", "h100", "h100-", "h100-0", "h100-08", "h100-٣", "v5e-1e0", "v4-8"):
        assert f"devices={name!r}" in refusal(name)


def test_a_device_is_known_by_the_longest_beginning():
    def peak(kind):
        device = targets.device_of(kind)
        return device and device.peak_flops

    assert peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak("NVIDIA A10") == 125e12
    assert peak("NVIDIA A10G") == 70e12
    assert peak("NVIDIA H100 80GB HBM3") == 989e12
    assert peak("NVIDIA H100 PCIe") == 756e12
    assert peak("NVIDIA L4") == 121e12
    assert peak("NVIDIA L40S") == 362e12
    assert peak("TPU v5 lite") == 197e12
    assert peak("TPU v5") == peak("TPU v5p") == 459e12
    for unknown in ("cpu", "NVIDIA L400", "NVIDIA GeForce RTX 4090 D", "NVIDIA H100 MIG 1g.10gb"):
        assert peak(unknown) is None


def test_what_compiles_for_a_device_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'light-llm-jax[tpu]'" in refusal("v5e-1")
    assert "pip install 'light-llm-jax[gpu]'" in refusal("h100-1")


def test_a_gpus_memory_is_what_jax_takes_of_it(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert memory_fraction() == 0.75
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".9")
    assert memory_fraction() == 0.9


def test_libtpu_says_nothing_on_stderr():
    code = "from light_jax.parallel.targets import target; print(target('v5e-4').kind)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("TPU v5 lite\n", "")


def test_inside_a_targets_block_jax_asks_the_target(monkeypatch):
    """No GPU is needed: the questions are functions of jax."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    a100 = next(device for device in targets.table() if device.name == "a100")
    before = fused.check_compute_capability
    with targets.compiling_for(targets.Target("a100-1", a100, [], 0)):
        assert fused.check_cudnn_version() > 90000
        assert fused.check_compute_capability("8.0")
        assert not fused.check_compute_capability("9.0")
        assert fused.is_cuda_compute_capability_equal("8.0")
    assert fused.check_compute_capability is before
    monkeypatch.delattr(fused, "is_cuda_compute_capability_equal")
    with pytest.raises(UserError, match=r"use jax 0\.10"):
        targets.compiling_for(targets.Target("a100-1", a100, [], 0)).__enter__()


CUDNN = """
import jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from light_jax.parallel.targets import compiling_for, known_names, target
from light_jax.reporting.program import read

for name in known_names():
    if not name.startswith(("v", "tpu")) and name.endswith("-1"):
        found = target(name)
        assert name.partition("-")[0] in found.kind.lower().replace(" ", ""), found.kind
        here = NamedSharding(Mesh(found.devices, ("x",)), PartitionSpec())
        q = jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.bfloat16, sharding=here)
        def loss(q):
            out = jax.nn.dot_product_attention(q, q, q, is_causal=True, implementation="cudnn")
            return out.astype(jnp.float32).sum()
        with compiling_for(found):
            program = read(jax.jit(jax.grad(loss)).lower(q).compile())
        assert (program.attention, program.attention_calls) == ("cudnn", 2), (name, program)
print(len(target("h100-16").devices), {d.process_index for d in target("h100-16").devices})
"""


@pytest.mark.cuda
@needs_cuda
def test_every_gpu_of_the_table_compiles_cudnns_attention():
    done = subprocess.run([sys.executable, "-c", CUDNN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "16 {0, 1}"


def test_what_is_compiled_for_a_target_is_not_kept(tmp_path):
    """jax would warn at the next start that it cannot read it."""
    script = [sys.executable, ROOT / "tests/collective_loop.py", "v5e-4"]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), **CACHE_ALL}
    for _ in range(2):
        done = subprocess.run(
            script, env=os.environ | IMPORTS | cache, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert contents(tmp_path) == {}


def test_libtpu_is_the_pinned_one():
    assert importlib.metadata.version("libtpu") >= "0.0.42"
