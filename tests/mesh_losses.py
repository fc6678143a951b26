"""Ten steps of a reference run on each mesh of eight devices of this CPU.

`python tests/mesh_losses.py CASE [MESH…]` prints one JSON object: by mesh, such as `data2 fsdp2`,
the losses, and of the compiled step, on one device, the bytes of its arguments and what it keeps of
the layers. `data2 fsdp2 recomputed` has each layer computed again in the backward pass. The case
`NAME muon` is the reference run NAME with that optimizer, `NAME documents` with a document mask.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import sys
from typing import Any

from tiny_runs import REFERENCE, devices, merged

if __name__ == "__main__":  # a test that imports this file keeps its own devices
    os.environ |= {"JAX_PLATFORMS": "cpu"} | devices(8)

import jax
import jax.numpy as jnp
import numpy as np
import yaml

from light_jax.config import TrainingConfig
from light_jax.data import TokenStream
from light_jax.models.placement import Placement
from light_jax.parallel.sharding import make_mesh, placement_of
from light_jax.state import TrainState
from light_jax.training import step as train_step
from light_jax.training.compiled import blank_state, compile_train_step
from light_jax.training.step import init_params, init_state

STEPS = 10
RECOMPUTED = "recomputed"
# 8 rows, so that each device can have one; of 136 words each tensor axis gets its part.
SIZES = {"batch_size": 8, "model": {"vocab_size": 136}}


def config_of(case: str, mesh: str) -> TrainingConfig:
    """The reference run; over several devices its layers are a loop, as on a GPU or TPU."""
    name, _, special = case.partition(" ")
    folder = REFERENCE / "training" / name
    read = merged(yaml.safe_load((folder / "config.yaml").read_text()), SIZES)
    axes = {axis: int(size) for axis, size in re.findall(r"([a-z]+)(\d+)", mesh)}
    changes = {
        "train_data": str(folder / "train"),
        "val_data": None,
        "mesh": {"data": 1} | axes,
        "model": {"gradient_checkpointing": _recompute(mesh)},
    }
    if special == "documents":
        changes["model"]["attention"] = {"document_mask": True, "document_end": 14}
    if name == "sgd-constant":  # what a step can have besides, on a mesh with every axis
        changes |= {"z_loss": 1e-2, "ema_decay": 0.9}
        changes["model"]["logit_softcap"] = 1.0
    if special == "muon":  # in 16 bits its iteration would turn a last bit into a hundredth
        changes["optimizer"] = {"type": "muon", "muon_dtype": "float32"}
    return TrainingConfig.model_validate(merged(read, changes))


def _recompute(mesh: str) -> bool | str:
    return True if RECOMPUTED in mesh else "matmuls" if mesh else False


def _as_a_loop(*args: Any) -> Placement:
    """A CPU would unroll layers that are computed again; GPUs and TPUs do not."""
    return dataclasses.replace(placement_of(*args), scanned=True)


@functools.cache
def first_state(case: str) -> TrainState:
    """On the host, since a step donates its arrays. Runs of llm-train make it on their mesh, in
    test_sharding.py."""
    cfg = config_of(case, "")
    return jax.device_get(jax.jit(lambda: init_state(cfg, init_params(cfg)))())


def run(case: str, mesh_name: str) -> tuple[list[float], int, list[list[int]]]:
    """(losses, bytes of arguments on one device, shapes of what a loop keeps of the layers)."""
    cfg = config_of(case, mesh_name)
    size = math.prod((cfg.mesh.data, cfg.mesh.fsdp, cfg.mesh.tensor))
    mesh = make_mesh(cfg.mesh, jax.devices()[:size])
    blank, shardings = blank_state(cfg, mesh)
    train_step.placement_of = _as_a_loop if RECOMPUTED in mesh_name else placement_of
    step = compile_train_step(cfg, mesh, shardings, blank)
    state = jax.device_put(jax.tree.map(np.array, first_state(case)), shardings)
    leaves, losses = jax.tree.leaves(state), []
    stream = TokenStream(cfg.train_data, seq_len=cfg.seq_len, seed=cfg.seed)
    for number in range(STEPS):
        windows = stream.windows(number * cfg.batch_size + np.arange(cfg.batch_size))
        leaves, metrics = step(leaves, windows[None], jnp.float32(cfg.optimizer.lr))
        losses.append(float(metrics.loss))
    kept = _kept(step.as_text(), cfg.model.num_layers, cfg.model.d_model)
    return losses, step.memory_analysis().argument_size_in_bytes, kept


def _kept(text: str, layers: int, width: int) -> list[list[int]]:
    """(rows, positions) of the arrays [layers, rows, positions, width] of a compiled program."""
    found = set(re.findall(rf"\bf32\[{layers},(\d+),(\d+),{width}\]", text))
    return sorted([int(rows), int(positions)] for rows, positions in found)


if __name__ == "__main__":
    case, *meshes = sys.argv[1:]
    print(json.dumps({mesh: run(case, mesh) for mesh in ("", *meshes)}))
