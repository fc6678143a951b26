"""The step as a TPU's compiler makes it, held to recorded facts: no TPU is needed."""

import pytest
from tiny_runs import write_config

from light_jax.config import load_config
from light_jax.parallel.sharding import make_mesh
from light_jax.parallel.targets import compiling_for, target
from light_jax.reporting.program import Program
from light_jax.training.fit import measure

pytestmark = pytest.mark.compiled_fully

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


def compile_step(folder, step=STEP, devices=TARGET) -> Program:
    cfg, there = load_config(write_config(folder / "c.yaml", **step)), target(devices)
    with compiling_for(there):
        mesh = make_mesh(cfg.mesh, there.devices)
        program = measure(cfg, mesh, None, largest=False).program
    assert program is not None
    return program


def facts_of(program: Program) -> dict:
    return {
        "attention": program.attention,
        "attention_calls": program.attention_calls,
        "collectives": {k: (found.count, found.bytes) for k, found in program.collectives.items()},
    }


def test_the_step_of_a_tpu_is_the_recorded_one(tmp_path):
    assert facts_of(compile_step(tmp_path)) == FACTS


def test_a_layer_adds_its_input_and_its_part_of_the_gradients(tmp_path):
    """With fsdp nothing adds up that is whole on a device."""
    T, D, F, devices, rows = 512, 512, 1408, 8, 2
    model = STEP["model"] | {"max_seq_len": T, "d_model": D, "ffn": {"expansion_factor": F / D}}
    step = STEP | {"seq_len": T, "batch_size": rows * devices}
    step |= {"mesh": {"data": 1, "fsdp": devices, "tensor": 1}}
    two, four = (
        compile_step(tmp_path, step | {"model": model | {"num_layers": layers}}, f"v5e-{devices}")
        for layers in (2, 4)
    )
    growth = (four.temporaries - two.temporaries) / 2
    saved_input = 4 * rows * T * D
    kernels = D * (2 * D + 2 * D // 2 + 3 * F)  # q and out, k and v, the ffn's three
    gradients = 4 * kernels / devices
    assert 0 < growth <= 1.1 * (saved_input + gradients)


if __name__ == "__main__":
    import pprint
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as name:
        pprint.pp(facts_of(compile_step(Path(name))))
