"""The report on a step that was not finite.

    DIR/nonfinite-stepN/
      tokens.npy            int32 [A, B, S], the batch
      weights.safetensors   float32, PyTorch's keys: the weights that the step began with
      report.json           loss, norms per layer, where the rows came from, the command

Letters: A micro-batches, B batch, S = T + 1 tokens of a window, D model.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from conversion.mapping import Entry, table
from light_jax.checkpoint import protocol
from light_jax.checkpoint.store import candidates
from light_jax.checkpoint.weights import save_weights
from light_jax.config import TrainingConfig
from light_jax.parallel.hosts import is_main, together
from light_jax.parallel.sharding import local_rows, replicated, to_global
from light_jax.state import Run, StepMetrics, TrainState
from light_jax.training.step import micro_batch_grads
from light_jax.training.verdict import MAX_SKIPS
from light_llm.errors import NonFinite, UserError
from light_llm.files import disk

TOKENS, WEIGHTS, REPORT = "tokens.npy", "weights.safetensors", "report.json"
SHOWN_PLACES = 16
"""The report lists all places that a batch came from, the message this many."""


def explained(run: Run, bad: NonFinite, config_path: Path, check: Callable[[], None]) -> NonFinite:
    """Write the folder; return the error to raise, with what a person needs to look into it.

    Every process calls it. The run's state is still that before the step: a bad step changes
    nothing.

    Args:
        check: raises if the directory is no longer the run's.
    """
    directory = Path(run.cfg.checkpoint_dir)
    folder = directory / f"nonfinite-step{bad.step + 1}"
    command = shlex.join(["llm-train", str(config_path), "--replay", str(folder)])
    windows = run.cfg.gradient_accumulation_steps * run.cfg.batch_size
    places = run.train_stream.locate(bad.step * windows, windows)
    there = candidates("auto", directory)
    kept = f"the newest checkpoint is {there[0].prefix}" if there else "there is no checkpoint yet"
    try:
        _write(run, bad, folder, command, places, check)
        where = f"Its batch, weights and norms per layer are in {folder}; to run it again:\n  "
        where += command
    except (OSError, UserError) as error:
        where = f"{folder} could not be written ({error})"
    rows = "\n".join(f"  {shard}: rows {a} to {b}" for shard, a, b in places[:SHOWN_PLACES])
    if len(places) > SHOWN_PLACES:
        rows += f"\n  and {len(places) - SHOWN_PLACES} more places"
    what, remedy = _what(run.cfg, bad.metrics)
    return NonFinite(
        f"step {bad.step + 1}: {what}; {remedy}. Nothing of this step was kept, and {kept}. "
        f"{where}\nThe batch came from\n{rows}",
        bad.step,
        bad.metrics,
    )


def _what(cfg: TrainingConfig, metrics: StepMetrics) -> tuple[str, str]:
    """(what happened, the remedy)."""
    if np.isfinite(metrics.loss) and cfg.dtype == "float16":
        return (
            f"the gradients overflowed float16 {MAX_SKIPS} times in a row",
            "use dtype bfloat16 or float32, or a lower optimizer.lr",
        )
    return (
        "the loss or the gradient norm is not finite",
        "lower optimizer.lr, or look at these rows",
    )


def _write(
    run: Run,
    bad: NonFinite,
    folder: Path,
    command: str,
    places: list[tuple[str, int, int]],
    check: Callable[[], None],
) -> None:
    cfg, state = run.cfg, run.state
    first = bad.step * cfg.gradient_accumulation_steps * cfg.batch_size
    shape = (cfg.gradient_accumulation_steps, cfg.batch_size, cfg.seq_len + 1)
    tokens_ABS = run.train_stream.windows(np.arange(first, first + math.prod(shape[:2])))
    tokens_ABS = tokens_ABS.reshape(shape)
    scale = None if state.loss_scale is None else jax.device_get(state.loss_scale)
    report = {
        "step": bad.step + 1,
        "loss": json_number(bad.metrics.loss),
        "grad_norm": json_number(bad.metrics.grad_norm),
        "loss_scale": scale and {k: v.item() for k, v in dataclasses.asdict(scale).items()},
        "replay": command,
        "rows": [{"shard": shard, "first": a, "last": b} for shard, a, b in places],
        **norms_by_layer(cfg, run.mesh, state, on_devices(tokens_ABS, cfg, run.mesh)),
    }
    staging = protocol.writing_dir(folder.parent, folder.name)

    def begin() -> None:
        check()
        protocol.start(folder.parent, folder.name, run.host.run)
        with disk.create(staging / TOKENS) as file:
            np.save(file, tokens_ABS)
        with disk.create(staging / REPORT) as file:
            file.write((json.dumps(report, indent=2) + "\n").encode())

    together(lambda: begin() if is_main() else None)
    save_weights(staging, WEIGHTS.removesuffix(".safetensors"), state.weights, cfg.model)
    if is_main():
        check()
        protocol.commit_report(folder.parent, folder.name, run.host.run)


def json_number(value: Any) -> float | str:
    """A number, or its name as a text: strict JSON has no inf and no nan."""
    return float(value) if np.isfinite(value) else str(float(value))


def on_devices(tokens_ABS: np.ndarray, cfg: TrainingConfig, mesh: Mesh) -> jax.Array:
    """A whole batch, which every process has, laid out as the step takes it."""
    rows = local_rows(cfg.batch_size, mesh)
    return to_global(tokens_ABS[:, rows], rows, cfg.batch_size, 1, mesh)


def norms_by_layer(
    cfg: TrainingConfig, mesh: Mesh, state: TrainState, tokens_ABS: jax.Array
) -> dict[str, Any]:
    """Loss, and L2 norms of activations and gradients by layer, of each micro-batch [A]."""
    everywhere = replicated(mesh)
    diagnose = jax.jit(_make_diagnosis(cfg, mesh), out_shardings=everywhere)
    found = jax.device_get(diagnose(state, tokens_ABS))
    named = {
        "activations": zip(_watched(cfg), found["activations"].T, strict=True),
        "gradients": zip(_entries_by_layer(cfg), found["gradients"].T, strict=True),
    }
    return {
        "micro_batch_loss": [json_number(value) for value in found["loss"]],
        **{
            kind: {name: [json_number(value) for value in norm_A] for name, norm_A in norms}
            for kind, norms in named.items()
        },
    }


def _watched(cfg: TrainingConfig) -> list[str]:
    """The names of the activations that `micro_batch_grads` shows, in order."""
    return ["tok_emb", "embeddings", *(f"layers.{i}" for i in range(cfg.model.num_layers))]


def _entries_by_layer(cfg: TrainingConfig) -> dict[str, list[Entry]]:
    """The parameters of each layer, in the order of the model."""
    layers: dict[str, list[Entry]] = {}
    for entry in table(cfg.model):
        name = ".".join(map(str, entry.path[: 2 if entry.path[0] == "layers" else 1]))
        layers.setdefault(name, []).append(entry)
    return layers


def _make_diagnosis(
    cfg: TrainingConfig, mesh: Mesh
) -> Callable[[TrainState, jax.Array], dict[str, jax.Array]]:
    """(state, tokens_ABS) -> loss [A], norms of activations and gradients [A, places]."""
    grads_of = micro_batch_grads(cfg, mesh, watch=lambda x_BTD: _norm([x_BTD]))

    def diagnose(state: TrainState, tokens_ABS: jax.Array) -> dict[str, jax.Array]:
        def micro_batch(inputs: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
            losses, grads, activations = grads_of(state, *inputs)
            gradients = [
                _norm([_leaf(grads, entry) / state.scale for entry in entries])
                for entries in _entries_by_layer(cfg).values()
            ]
            return {
                "loss": losses.cross_entropy,
                "activations": jnp.stack(activations),
                "gradients": jnp.stack(gradients),
            }

        found: dict[str, jax.Array] = jax.lax.map(
            micro_batch, (jnp.arange(tokens_ABS.shape[0]), tokens_ABS)
        )
        return found

    return diagnose


def _leaf(tree: Any, entry: Entry) -> jax.Array:
    for part in entry.path:
        tree = tree[part]
    leaf: jax.Array = tree[...]
    return leaf


def _norm(arrays: list[jax.Array]) -> jax.Array:
    """The L2 norm of all arrays; it overflows only where the norm itself is too large."""
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in arrays])).astype(jnp.float32)
    unit = jnp.where(largest == 0, 1, largest)
    return unit * jnp.sqrt(sum(jnp.sum(jnp.square(x.astype(jnp.float32) / unit)) for x in arrays))
