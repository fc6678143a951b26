"""Laws of every kind of mesh, on eight devices of this CPU: one device's losses, and its share of
the state."""

import functools
import json
import math
import os
import re
import subprocess
import sys

import jax
import pytest
from architectures import config_of, name_of, pairwise
from mesh_losses import RECOMPUTED, STEPS
from mesh_losses import config_of as run_of
from tiny_runs import IMPORTS, ROOT

from light_jax.config import TrainingConfig
from light_jax.parallel.sharding import path_names, state_shardings
from light_jax.training.step import init_params, init_state

ONE_DEVICE = ""
KINDS = [
    "data8",
    "fsdp8",
    "tensor4",
    "data4 fsdp2",
    "data4 tensor2",
    "fsdp4 tensor2",
    "data2 fsdp2 tensor2",
]
# One architecture in float32, on all kinds; a second on three, and on all if asked for; another
# optimizer and another dtype, on one. Where layers are recomputed, a device of a tensor group keeps
# a part of the positions of their inputs.
MESHES = {
    "adamw-cosine": KINDS,
    "adam-biases-epochs": ["fsdp8", "tensor4", "data2 fsdp2 tensor2"],
    "sgd-constant documents": ["data2 fsdp2 tensor2 recomputed"],
    "adamw-bf16": KINDS[-1:],
    "adamw-cosine muon": ["fsdp8", "data2 fsdp2 tensor2"],
}


ALL_KINDS = ("adam-biases-epochs", *KINDS)


@functools.cache
def runs(case: str, *kinds: str) -> dict[str, tuple[list[float], int, list[list[int]]]]:
    """By mesh: the losses; of the compiled step, on one device, the bytes of its arguments and
    (rows, positions) of what it keeps of the layers."""
    script = [sys.executable, ROOT / "tests/mesh_losses.py", case, *(kinds or MESHES[case])]
    done = subprocess.run(script, env=os.environ | IMPORTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


BY_DEFAULT = [pytest.param((case,), id=case) for case in MESHES]
SECOND = pytest.param(ALL_KINDS, id=f"{ALL_KINDS[0]} on all kinds", marks=pytest.mark.slow)


@pytest.mark.parametrize("args", [*BY_DEFAULT, SECOND])
def test_every_kind_of_mesh_gives_one_devices_losses(args):
    case, found = args[0], runs(*args)
    one = found[ONE_DEVICE][0]
    assert len(one) == STEPS
    assert one[-1] < one[0]
    # matmuls in 16 bits round other sums where the sums are cut
    tolerance = 5e-3 if case == "adamw-bf16" else 1e-5
    for mesh in found.keys() - {ONE_DEVICE}:
        assert found[mesh][0] == pytest.approx(one, abs=tolerance), mesh


@pytest.mark.parametrize("args", [*BY_DEFAULT[:2], SECOND])
def test_a_device_holds_its_share_of_weights_and_moments(args):
    """Of a compiled step's arguments: matrices fall as 1/fsdp, and as 1/tensor but for the kv heads
    that tensor would split; vectors of d_model are on every device."""
    found, cfg = runs(*args), run_of(args[0], ONE_DEVICE)
    weights = jax.tree_util.tree_leaves_with_path(jax.eval_shape(lambda: init_params(cfg)))
    sizes = {path_names(path)[-2:]: 0 for path, _ in weights}
    for path, leaf in weights:
        sizes[path_names(path)[-2:]] += 3 * 4 * leaf.size  # with Adam's two moments

    def state(fsdp: int, tensor: int) -> int:
        total = 0
        for (name, kind), size in sizes.items():
            rows = name in ("q_proj", "gate_proj", "up_proj", "fc1")  # their results are cut
            kv = name in ("k_proj", "v_proj")
            over_tensor = tensor if cfg.model.attention.num_kv_heads % tensor == 0 or not kv else 1
            if kind == "kernel" or name in ("tok_emb", "lm_head"):
                total += size // (fsdp * over_tensor)
            elif name == "emb":  # learned positions
                total += size // fsdp
            else:
                total += size // over_tensor if rows or kv else size
        return total

    def arguments(fsdp: int, tensor: int, batch_shards: int) -> int:
        return state(fsdp, tensor) + 4 * cfg.batch_size // batch_shards * (cfg.seq_len + 1)

    scalars = found[ONE_DEVICE][1] - arguments(1, 1, 1)
    assert 0 < scalars < 64
    for mesh in found.keys() - {ONE_DEVICE}:
        axes = {axis: int(size) for axis, size in re.findall(r"([a-z]+)(\d+)", mesh)}
        data, fsdp, tensor = (axes.get(axis, 1) for axis in ("data", "fsdp", "tensor"))
        assert found[mesh][1] == scalars + arguments(fsdp, tensor, data * fsdp), mesh


def test_a_tensor_group_keeps_a_layers_input_once():
    """Each of its two devices has half of the positions of its two rows."""
    cfg = run_of("sgd-constant documents", RECOMPUTED)
    (mesh,) = MESHES["sgd-constant documents"]
    kept, rows = runs("sgd-constant documents")[mesh][2], cfg.batch_size // 4
    assert [rows, cfg.seq_len // 2] in kept
    assert [rows, cfg.seq_len] not in kept


@pytest.mark.parametrize("row", pairwise(), ids=name_of)
def test_nothing_large_is_on_every_device(row):
    """Whatever the architecture: with fsdp, only vectors are copied."""
    cfg = TrainingConfig(train_data="x", seq_len=8, model=config_of(row).model_dump())
    mesh = jax.sharding.AbstractMesh((1, 2, 1), ("data", "fsdp", "tensor"))
    state = jax.eval_shape(lambda: init_state(cfg, init_params(cfg)))
    shardings = state_shardings(state, cfg.model, mesh)
    largest_vector = max(cfg.model.d_model, cfg.model.ffn_dim)
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(shardings), strict=True
    ):
        on_one_device = math.prod(sharding.shard_shape(leaf.shape))
        if leaf.size > largest_vector:
            assert on_one_device == leaf.size // 2, path_names(path)
