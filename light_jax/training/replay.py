"""`llm-train CONFIG --replay FOLDER`: a step that was not finite, run again from its report.

Letters: A micro-batches, B batch, S = T + 1 tokens of a window.
"""

from __future__ import annotations

import dataclasses
import io
import math
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
from light_jax.training.compiled import blank_state, compile_train_step
from light_jax.training.diagnosis import (
    REPORT,
    TOKENS,
    WEIGHTS,
    json_number,
    norms_by_layer,
    on_devices,
)
from light_jax.training.optimizer import learning_rate
from light_jax.training.step import init_state
from light_llm.errors import UserError
from light_llm.files import given


def replay(config_path: str | Path, folder: str | Path) -> int:
    """Run the step of a report again. Nothing is written.

    Returns:
        3 if it is not finite again, else 0.

    Raises:
        UserError: the folder holds no such report, or another config's.
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
    _, metrics = train(
        jax.tree.leaves(state), tokens, np.float32(learning_rate(cfg, report["step"] - 1))
    )
    metrics = jax.device_get(metrics)
    _print(report, metrics, norms)
    return 3 if metrics.bad_step >= 0 else 0


def _state(cfg: TrainingConfig, weights: Params, report: dict[str, Any]) -> TrainState:
    """The state that the step began with, without the moments: gradients do not need them."""
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


def _print(report: dict[str, Any], metrics: StepMetrics, norms: dict[str, Any]) -> None:
    now = json_number(metrics.loss), json_number(metrics.grad_norm)
    then = report["loss"], report["grad_norm"]
    with Reporter() as reporter:
        for when, (loss, norm) in (("now", now), ("in the run", then)):
            reporter.line(f"step {report['step']}  loss {loss}  gradient norm {norm}  ({when})")
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
    report = given.read_json(folder / REPORT, what="the report")
    scale = _checked_scale(report, folder)
    shape = (cfg.gradient_accumulation_steps, cfg.batch_size, cfg.seq_len + 1)
    tokens_ABS = _read_tokens(folder, shape)
    if tokens_ABS.min() < 0 or tokens_ABS.max() >= cfg.model.vocab_size:
        raise UserError(
            f"--replay {folder}: its tokens are not below model.vocab_size={cfg.model.vocab_size}; "
            "use the config of that run"
        )
    if (scale is not None) != (cfg.dtype == "float16"):
        raise UserError(
            f"--replay {folder}: is not of a run with dtype={cfg.dtype!r}; use that run's config"
        )
    return report, tokens_ABS


def _checked_scale(report: Any, folder: Path) -> Any:
    """The loss scale of a report whose keys are what a run writes, or None."""
    try:
        step, scale = report["step"], report["loss_scale"]
        if type(step) is not int or not 1 <= step < 2**31:
            raise ValueError(f"step={step!r}")
        if scale is not None:
            names = ("scale", "finite_steps", "skipped_steps")
            numbers = [float(scale[name]) for name in names]
            if not all(
                0 <= number < 2**31 or name == "scale"
                for name, number in zip(names, numbers, strict=True)
            ):
                raise ValueError(f"loss_scale={scale!r}")
        for name in ("loss", "grad_norm"):
            if not isinstance(report[name], int | float | str):
                raise ValueError(f"{name}={report[name]!r}")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"--replay {folder}: damaged ({error}); run the step again") from None
    return scale


def _read_tokens(folder: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The batch, after a look at the header: reading allocates the shape that it claims.

    Raises:
        UserError: it is not a numpy file, or has another shape.
    """
    limit = given.SMALL + 4 * math.prod(shape)
    data = io.BytesIO(given.read_bytes(folder / TOKENS, limit, "the batch"))
    with given.foreign(lambda why: f"--replay {folder}: damaged ({why}); run the step again"):
        if np.lib.format.read_magic(data) != (1, 0):
            raise ValueError("not of the version that a run writes")
        claimed, _, dtype = np.lib.format.read_array_header_1_0(data)
    if claimed != shape or dtype != np.int32:
        raise UserError(
            f"--replay {folder}: its batch {list(claimed)} does not have this config's shape, "
            f"{list(shape)} (gradient_accumulation_steps, batch_size, seq_len + 1); use the config "
            "of that run"
        )
    data.seek(0)
    with given.foreign(lambda why: f"--replay {folder}: damaged ({why}); run the step again"):
        return np.load(data, allow_pickle=False)
