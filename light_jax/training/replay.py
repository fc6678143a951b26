"""`llm-train CONFIG --replay FOLDER`: a step that was not finite, run again from its report.

Letters: A micro-batches, B batch, S = T + 1 tokens of a window.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from light_jax.checkpoint.weights import load_weights
from light_jax.config import TrainingConfig, load_config
from light_jax.parallel.hosts import together
from light_jax.parallel.sharding import check_batch, make_mesh
from light_jax.reporting.console import Reporter
from light_jax.state import LossScale, Params, StepMetrics, TrainState
from light_jax.training.diagnosis import (
    REPORT,
    TOKENS,
    WEIGHTS,
    json_number,
    norms_by_layer,
    on_devices,
)
from light_jax.training.optimizer import learning_rate
from light_jax.training.run import blank_state, compile_train_step
from light_jax.training.step import init_state
from light_llm.errors import UserError


def replay(config_path: str | Path, folder: str | Path) -> int:
    """The step of a report once more. Nothing is written.

    Returns:
        3 if it is not finite again, else 0.

    Raises:
        UserError: the folder holds no such report, or one of another config.
    """
    cfg, folder = load_config(config_path), Path(folder)
    mesh = make_mesh(cfg.mesh)
    check_batch(cfg.batch_size, mesh)
    report, tokens_ABS = together(lambda: _read(folder, cfg))
    _, shardings = blank_state(cfg, mesh)
    weights = together(lambda: load_weights(folder / WEIGHTS, cfg.model, shardings.weights))
    begin = jax.jit(lambda weights: _state(cfg, weights, report), out_shardings=shardings)
    state = begin(weights)
    tokens = on_devices(tokens_ABS, cfg, mesh)
    norms = norms_by_layer(cfg, mesh, state, tokens)  # before the step, which donates the state
    train = compile_train_step(cfg, mesh, shardings, state)
    _, metrics = train(state, tokens, np.float32(learning_rate(cfg, report["step"] - 1)))
    metrics = jax.device_get(metrics)
    _tell(report, metrics, norms)
    return 3 if metrics.bad_step >= 0 else 0


def _state(cfg: TrainingConfig, weights: Params, report: dict[str, Any]) -> TrainState:
    """The state that the step began with, but for the moments: its gradients do not need them."""
    saved = report["loss_scale"]
    return dataclasses.replace(
        init_state(cfg, weights),
        step=jnp.int32(report["step"] - 1),
        loss_scale=saved
        and LossScale(
            jnp.float32(saved["scale"]),
            jnp.int32(saved["finite_steps"]),
            jnp.int32(saved["skipped_steps"]),
        ),
    )


def _tell(report: dict[str, Any], metrics: StepMetrics, norms: dict[str, Any]) -> None:
    now = json_number(metrics.loss), json_number(metrics.grad_norm)
    then = report["loss"], report["grad_norm"]
    with Reporter() as reporter:
        for told, (loss, norm) in (("now", now), ("in the run", then)):
            reporter.line(f"step {report['step']}  loss {loss}  gradient norm {norm}  ({told})")
        reporter.line(f"{'loss':24}{_cells(norms['micro_batch_loss'])}   of each micro-batch")
        for kind in ("activations", "gradients"):
            for name, values in norms[kind].items():
                reporter.line(f"{kind:12}{name:12}{_cells(values)}")


def _cells(values: list[float | str]) -> str:
    return "".join(
        f"{value:>12}" if isinstance(value, str) else f"{value:12.4g}" for value in values
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
