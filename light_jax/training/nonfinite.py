"""A step that was not finite: what is written down of it, and running it again.

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
from light_jax.checkpoint.weights import load_weights, save_weights
from light_jax.config import TrainingConfig, load_config
from light_jax.parallel.hosts import is_main, together
from light_jax.parallel.sharding import (
    check_batch,
    local_rows,
    make_mesh,
    replicated,
    state_shardings,
    to_global,
)
from light_jax.reporting.console import Reporter
from light_jax.state import LossScale, Run, StepMetrics, TrainState
from light_jax.training.optimizer import learning_rate
from light_jax.training.run import compile_train_step
from light_jax.training.step import (
    MAX_SKIPS,
    dropout_key,
    init_params,
    init_state,
    summed_loss,
)
from light_llm.errors import NonFinite, UserError
from light_llm.files import disk

TOKENS, WEIGHTS, REPORT = "tokens.npy", "weights.safetensors", "report.json"


def explained(run: Run, bad: NonFinite, config_path: Path) -> NonFinite:
    """The error with all that a person needs, when the folder is written; every process calls it.

    The run's state is still that before the step: a bad step changes nothing.
    """
    directory = Path(run.cfg.checkpoint_dir)
    folder = directory / f"nonfinite-step{bad.step + 1}"
    command = shlex.join(["llm-train", str(config_path), "--replay", str(folder)])
    windows = run.cfg.gradient_accumulation_steps * run.cfg.batch_size
    places = run.train_stream.locate(bad.step * windows, windows)
    there = candidates("auto", directory)
    kept = f"the newest checkpoint is {there[0].prefix}" if there else "there is no checkpoint yet"
    try:
        _write(run, bad, folder, command, places)
        told = f"Its batch, weights and norms per layer are in {folder}; to run it again:\n  "
        told += command
    except OSError as error:
        told = f"{folder} could not be written ({error})"
    rows = "\n".join(f"  {shard}: rows {first} to {last}" for shard, first, last in places)
    what, remedy = _what(run.cfg, bad.metrics)
    return NonFinite(
        f"step {bad.step + 1}: {what}; {remedy}. Nothing of this step was kept, and {kept}. "
        f"{told}\nThe batch came from\n{rows}",
        bad.step,
        bad.metrics,
    )


def _what(cfg: TrainingConfig, metrics: StepMetrics) -> tuple[str, str]:
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
    run: Run, bad: NonFinite, folder: Path, command: str, places: list[tuple[str, int, int]]
) -> None:
    cfg, state = run.cfg, run.state
    first = bad.step * cfg.gradient_accumulation_steps * cfg.batch_size
    shape = (cfg.gradient_accumulation_steps, cfg.batch_size, cfg.seq_len + 1)
    tokens_ABS = run.train_stream.windows(np.arange(first, first + math.prod(shape[:2])))
    tokens_ABS = tokens_ABS.reshape(shape)
    scale = None if state.loss_scale is None else jax.device_get(state.loss_scale)
    report = {
        "step": bad.step + 1,
        "loss": _number(bad.metrics.loss),
        "grad_norm": _number(bad.metrics.grad_norm),
        "loss_scale": scale and {k: v.item() for k, v in dataclasses.asdict(scale).items()},
        "replay": command,
        "rows": [{"shard": shard, "first": a, "last": b} for shard, a, b in places],
        **_norms(cfg, run.mesh, state, _placed(tokens_ABS, cfg, run.mesh)),
    }
    staging = protocol.writing_dir(folder.parent, folder.name)
    if is_main():
        protocol.start(folder.parent, folder.name)
        np.save(staging / TOKENS, tokens_ABS)
        (staging / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    save_weights(staging / WEIGHTS, state.weights, cfg.model)
    if is_main():
        disk.flush(staging)
        disk.remove(folder)
        staging.rename(folder)
        disk.sync(folder.parent)


def _number(value: Any) -> float | str:
    """Strict JSON has no inf and no nan, and here they are the point."""
    return float(value) if np.isfinite(value) else str(float(value))


def _placed(tokens_ABS: np.ndarray, cfg: TrainingConfig, mesh: Mesh) -> jax.Array:
    rows = local_rows(cfg.batch_size, mesh)
    return to_global(tokens_ABS[:, rows], rows, cfg.batch_size, 1, mesh)


def _norms(
    cfg: TrainingConfig, mesh: Mesh, state: TrainState, tokens_ABS: jax.Array
) -> dict[str, Any]:
    """Loss, and L2 norms of activations and gradients by layer, of each micro-batch [A]."""
    everywhere = replicated(mesh)
    diagnose = jax.jit(_make_diagnosis(cfg, mesh), out_shardings=everywhere)
    found = jax.device_get(diagnose(state, tokens_ABS))
    named = {
        "activations": zip(_watched(cfg), found["activations"].T, strict=True),
        "gradients": zip(_by_layer(cfg), found["gradients"].T, strict=True),
    }
    return {
        "micro_batch_loss": [_number(value) for value in found["loss"]],
        **{
            kind: {name: [_number(value) for value in norm_A] for name, norm_A in norms}
            for kind, norms in named.items()
        },
    }


def _watched(cfg: TrainingConfig) -> list[str]:
    """The places whose activations `summed_loss` shows, in order."""
    return ["tok_emb", "embeddings", *(f"layers.{i}" for i in range(cfg.model.num_layers))]


def _by_layer(cfg: TrainingConfig) -> dict[str, list[Entry]]:
    """The parameters of each layer, in the order of the model."""
    layers: dict[str, list[Entry]] = {}
    for entry in table(cfg.model):
        name = ".".join(map(str, entry.path[: 2 if entry.path[0] == "layers" else 1]))
        layers.setdefault(name, []).append(entry)
    return layers


def _make_diagnosis(cfg: TrainingConfig, mesh: Mesh) -> Callable[..., dict[str, Any]]:
    seen: list[jax.Array] = []

    def watch(x_BTD: jax.Array) -> jax.Array:
        seen.append(_norm([x_BTD]))
        return x_BTD

    loss_sum = summed_loss(cfg, mesh, watch)

    def diagnose(state: TrainState, tokens_ABS: jax.Array) -> dict[str, Any]:
        step_key = dropout_key(cfg, state.step)
        scale = jnp.float32(1) if state.loss_scale is None else state.loss_scale.scale

        def scaled(params: Any, tokens_BS: jax.Array, key: jax.Array | None) -> Any:
            seen.clear()
            ones_BT = jnp.ones((tokens_BS.shape[0], tokens_BS.shape[1] - 1), jnp.float32)
            loss = loss_sum(params, tokens_BS, ones_BT, key) / ones_BT.size
            return loss * scale, (loss, jnp.stack(seen))

        def micro_batch(inputs: tuple[jax.Array, jax.Array]) -> dict[str, Any]:
            a, tokens_BS = inputs
            key = None if step_key is None else jax.random.fold_in(step_key, a)
            grads, (loss, acts) = jax.grad(scaled, has_aux=True)(state.params, tokens_BS, key)
            norms = [
                _norm([_leaf(grads, entry).astype(jnp.float32) / scale for entry in entries])
                for entries in _by_layer(cfg).values()
            ]
            return {"loss": loss, "activations": acts, "gradients": jnp.stack(norms)}

        found: dict[str, Any] = jax.lax.map(
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
    """The L2 norm of all of them, which overflows only where it is itself too large."""
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in arrays])).astype(jnp.float32)
    unit = jnp.where(largest == 0, 1, largest)
    return unit * jnp.sqrt(sum(jnp.sum(jnp.square(x.astype(jnp.float32) / unit)) for x in arrays))


def replay(config_path: str | Path, folder: str | Path) -> int:
    """`llm-train CONFIG --replay FOLDER`: the step of a report once more. Nothing is written.

    Returns:
        3 if it is not finite again, else 0.

    Raises:
        UserError: the folder holds no such report, or one of another config.
    """
    cfg, folder = load_config(config_path), Path(folder)
    mesh = make_mesh(cfg.mesh)
    check_batch(cfg.batch_size, mesh)
    report, tokens_ABS = together(lambda: _read(folder, cfg))
    abstract = jax.eval_shape(lambda: init_state(cfg, init_params(cfg)))
    shardings = state_shardings(abstract, cfg.model, mesh)
    weights = together(lambda: load_weights(folder / WEIGHTS, cfg.model, shardings.weights))
    fresh = jax.jit(lambda w: init_state(cfg, w), out_shardings=shardings)(weights)
    step = report["step"] - 1
    state = dataclasses.replace(
        fresh, step=jnp.int32(step), loss_scale=_loss_scale(report["loss_scale"])
    )
    state = jax.device_put(state, shardings)
    tokens = _placed(tokens_ABS, cfg, mesh)
    norms = _norms(cfg, mesh, state, tokens)
    train = compile_train_step(cfg, mesh, shardings, state)
    _, metrics = train(state, tokens, np.float32(learning_rate(cfg, step)))
    metrics = jax.device_get(metrics)
    with Reporter() as reporter:
        now, then = (metrics.loss, metrics.grad_norm), (report["loss"], report["grad_norm"])
        for told, (loss, norm) in (("now", map(_number, now)), ("in the run", then)):
            reporter.line(f"step {step + 1}  loss {loss}  gradient norm {norm}  ({told})")
        reporter.line(f"{'loss':24}{_cells(norms['micro_batch_loss'])}   of each micro-batch")
        for kind in ("activations", "gradients"):
            for name, values in norms[kind].items():
                reporter.line(f"{kind:12}{name:12}{_cells(values)}")
    return 3 if metrics.bad_step >= 0 else 0


def _cells(values: list[float | str]) -> str:
    return "".join(
        f"{value:>12}" if isinstance(value, str) else f"{value:12.4g}" for value in values
    )


def _loss_scale(saved: dict[str, float] | None) -> LossScale | None:
    if saved is None:
        return None
    return LossScale(
        jnp.float32(saved["scale"]),
        jnp.int32(saved["finite_steps"]),
        jnp.int32(saved["skipped_steps"]),
    )


def _read(folder: Path, cfg: TrainingConfig) -> tuple[dict[str, Any], np.ndarray]:
    for name in (TOKENS, WEIGHTS, REPORT):
        if not (folder / name).is_file():
            raise UserError(
                f"--replay {folder}: has no {name}; name a folder nonfinite-stepN that a run wrote "
                "into its checkpoint_dir"
            )
    try:
        report = json.loads((folder / REPORT).read_text())
        tokens_ABS = np.load(folder / TOKENS, allow_pickle=False)
        step, scale = int(report["step"]), report["loss_scale"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--replay {folder}: damaged ({error}); run the step again") from None
    shape = (cfg.gradient_accumulation_steps, cfg.batch_size, cfg.seq_len + 1)
    if tokens_ABS.shape != shape or tokens_ABS.dtype != np.int32 or step < 1:
        raise UserError(
            f"--replay {folder}: its batch {list(tokens_ABS.shape)} is not one of this config, "
            f"{list(shape)} (gradient_accumulation_steps, batch_size, seq_len + 1); use the config "
            "of that run"
        )
    if tokens_ABS.min() < 0 or tokens_ABS.max() >= cfg.model.vocab_size:
        raise UserError(
            f"--replay {folder}: its tokens are not below model.vocab_size={cfg.model.vocab_size}; "
            "use the config of that run"
        )
    if (scale is not None) != (cfg.dtype == "float16"):
        raise UserError(f"--replay {folder}: is not of a run with dtype={cfg.dtype!r}; use its own")
    return report, tokens_ABS
