"""The step as the compilers of TPUs and GPUs make it, held to recorded facts and to laws of memory:
neither is needed."""

import functools
import importlib.util
import sys

import pytest
from tiny_runs import ROOT, TINY, merged

from light_jax.config import TrainingConfig
from light_jax.parallel import targets
from light_jax.parallel.sharding import make_mesh
from light_jax.parallel.targets import compiling_for, target
from light_jax.reporting.program import Program, read
from light_jax.training.compiled import attempt, blank_state

sys.path.insert(0, str(ROOT / "benchmarks"))

from ledger.alive import gathered

pytestmark = pytest.mark.compiled_fully

HAS_CUDA = any(importlib.util.find_spec(name) for name in targets._cuda_plugins())

TARGET = "v5e-4"
STEP = {
    "dtype": "bfloat16",
    "seq_len": 256,
    "batch_size": 8,
    "mesh": {"data": 1, "fsdp": 4, "tensor": 1},
    "model": {
        "vocab_size": 1024,
        "max_seq_len": 256,
        "d_model": 256,
        "num_layers": 2,
        "tie_embeddings": False,
        "gradient_checkpointing": True,
        "attention": {"variant": "gqa", "num_heads": 4, "num_kv_heads": 2},
    },
}

# What jax 0.10.2 with libtpu 0.0.42.1 makes of it, on one device; collectives by count and bytes.
# After a change that is meant, `python tests/light_jax/training/test_accelerators.py` prints it.
FACTS = {
    "attention": "splash",
    "attention_calls": 8,
    "collectives": {
        "all-gather": (45, 6963200),
        "all-reduce": (19, 29760),
        "reduce-scatter": (10, 1261568),
        "all-to-all": (4, 1441792),
    },
}


def compile_step(step=STEP, devices=TARGET):
    cfg, there = TrainingConfig.model_validate(merged(TINY, step)), target(devices)
    with compiling_for(there):
        mesh = make_mesh(cfg.mesh, there.devices)
        state, shardings = blank_state(cfg, mesh)
        compiled = attempt(cfg, mesh, shardings, state).step
    assert compiled is not None
    return compiled


def facts_of(program: Program) -> dict:
    return {
        "attention": program.attention,
        "attention_calls": program.attention_calls,
        "collectives": {k: (found.count, found.bytes) for k, found in program.collectives.items()},
    }


def test_the_step_of_a_tpu_is_the_recorded_one():
    assert facts_of(read(compile_step())) == FACTS


T, D, F, DEVICES, ROWS = 512, 512, 1408, 8, 2
KERNELS = D * (2 * D + 2 * D // 2 + 3 * F)  # q and out, k and v, the ffn's three


@functools.cache
def cut_by_fsdp(family: str, layers: int):
    """The step over eight devices, all on fsdp."""
    model = {"max_seq_len": T, "d_model": D, "ffn": {"ffn_dim": F}, "num_layers": layers}
    step = {"seq_len": T, "batch_size": ROWS * DEVICES, "mesh": {"fsdp": DEVICES}, "model": model}
    return compile_step(merged(STEP, step), f"{family}-{DEVICES}")


def test_a_layer_adds_its_input_and_its_part_of_the_gradients():
    """With fsdp nothing adds up that is whole on a device."""
    two, four = (read(cut_by_fsdp("v5e", layers)).temporaries for layers in (2, 4))
    growth = (four - two) / 2
    saved_input = 4 * ROWS * T * D
    gradients = 4 * KERNELS / DEVICES
    assert 0 < growth <= 1.1 * (saved_input + gradients)


needs_cuda = pytest.mark.skipif(not HAS_CUDA, reason="JAX's CUDA wheels are not installed")


@pytest.mark.parametrize(
    "family", ["v5e", pytest.param("h100", marks=[pytest.mark.cuda, needs_cuda])]
)
def test_a_layers_weights_are_gathered_for_that_layer_alone(family):
    """At most one layer's kernels are whole on a device at once, in 16 bits, and no gather makes
    anything larger than its largest: nothing is copied that should be divided."""
    found = gathered(cut_by_fsdp(family, 4).as_text())
    largest, vectors = 2 * D * F, 64 * 2**10
    assert found.largest == largest
    assert largest < found.alive <= 2 * KERNELS + vectors


def test_muon_gathers_a_matrix_for_its_own_iteration():
    """No more is whole on a device at once than in the step's forward pass: a layer's kernels."""
    muon = gathered(compile_step(merged(STEP, {"optimizer": {"type": "muon"}})).as_text())
    model = TrainingConfig.model_validate(merged(TINY, STEP)).model
    width, ffn = model.d_model, model.ffn_dim
    assert muon.largest == 2 * width * ffn
    assert muon.alive <= 2 * width * (3 * width + 3 * ffn)


if __name__ == "__main__":
    import pprint

    pprint.pp(facts_of(read(compile_step())))
