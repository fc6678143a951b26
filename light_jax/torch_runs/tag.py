"""What the PyTorch trainer's DIR/TAG.state.pt holds <-> the state of a run here.

It is the dict {step, epoch, optimizer, scheduler, scaler, best_val_loss}.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from light_jax.config import TrainingConfig
from light_jax.state import LossScale, TrainState
from light_jax.torch_runs.optimizer import optimizer_from_torch, optimizer_to_torch, torch_schedule
from light_jax.torch_runs.parts import parts, whole_number
from light_jax.training.optimizer import learning_rate
from light_jax.training.step import init_state
from light_jax.training.verdict import LOSS_SCALE_GROWTH_INTERVAL
from light_llm.checkpoint import layout
from light_llm.errors import UserError

FLOAT32_MAX = float(np.finfo(np.float32).max)
KEYS = ("step", "epoch", "optimizer", "scheduler", "scaler", "best_val_loss")


def state_from_torch(
    data: Any, cfg: TrainingConfig, windows_per_epoch: int, source: str | Path
) -> tuple[TrainState, float | None, list[str]]:
    """(the state, without weights; the best validation loss; the lines to print).

    Args:
        data: as `torch_file.read` gives it.
        source: its name in messages.

    Raises:
        UserError: it does not fit the config, or shards with that many windows per epoch.
    """
    if missing := [key for key in KEYS if key not in data]:
        raise UserError(
            f"{source}: has no {', '.join(missing)}; a PyTorch trainer's state has "
            f"{', '.join(KEYS)}"
        )
    step, epoch, best = (data[key] for key in ("step", "epoch", "best_val_loss"))
    problems = [
        f"{key}={data[key]!r} is not a whole number"
        for key in ("step", "epoch")
        if whole_number(data[key]) is None
    ]
    if not isinstance(best, int | float) or math.isnan(best) or best == -math.inf:
        problems.append(f"best_val_loss={best!r} is not a loss")
    if problems:
        raise UserError(f"{source}: {'; '.join(problems)}; use the file that the trainer wrote")
    step, epoch = int(step), int(epoch)
    _check_epoch(step, epoch, cfg, windows_per_epoch, source)
    state = dataclasses.replace(
        init_state(cfg, {}),
        step=jnp.int32(step),
        opt_state=optimizer_from_torch(data["optimizer"], cfg, source),
        loss_scale=_loss_scale(data["scaler"], cfg, source),
    )
    count = optax.tree.get(state.opt_state, "count")
    if count is not None and int(count) > step:
        raise UserError(
            f"{source}: the optimizer made {int(count)} updates by step {step}; the two are of "
            "different saves"
        )
    first = parts(cfg)[0].of(data["optimizer"])
    notes = _rate_note(first["param_groups"][0].get("lr"), learning_rate(cfg, step))
    return state, None if math.isinf(best) else float(best), notes


def state_to_torch(
    state: TrainState, cfg: TrainingConfig, windows_per_epoch: int, best_val_loss: float | None
) -> dict[str, Any]:
    """What the PyTorch trainer would have saved, for `torch_file.write`."""
    step = int(state.step)
    moments = optimizer_to_torch(state.opt_state, cfg)
    schedules = torch_schedule(cfg, step, learning_rate(cfg, step))
    optimizer = {
        name: {"state": moments[name], "param_groups": groups}
        for name, (groups, _) in schedules.items()
    }
    scheduler = {name: schedule for name, (_, schedule) in schedules.items()}
    return {
        "step": step,
        "epoch": _windows_before(cfg, step) // windows_per_epoch,
        "optimizer": optimizer.get("", optimizer),
        "scheduler": scheduler.get("", scheduler),
        "scaler": _scaler(state.loss_scale),
        "best_val_loss": math.inf if best_val_loss is None else best_val_loss,
    }


def _check_epoch(
    step: int, epoch: int, cfg: TrainingConfig, windows_per_epoch: int, source: str | Path
) -> None:
    """Refuse an epoch that the stream cannot be in at that step: the shards are others."""
    read = _windows_before(cfg, step)
    epochs = {max(0, read - 1) // windows_per_epoch, read // windows_per_epoch}  # at a seam, either
    if epoch not in epochs:
        raise UserError(
            f"{source}: step {step} was in epoch {epoch}, and with the shards of "
            f"train_data={cfg.train_data!r}, {windows_per_epoch} windows an epoch, it is in epoch "
            f"{max(epochs)}; name the shards that it was trained on in its {layout.CONFIG}"
        )


def _windows_before(cfg: TrainingConfig, step: int) -> int:
    return step * cfg.gradient_accumulation_steps * cfg.batch_size


def _loss_scale(scaler: Any, cfg: TrainingConfig, source: str | Path) -> LossScale | None:
    """GradScaler's state as ours; it does not count skips in a row, so these start from 0."""
    if not isinstance(scaler, dict):
        raise UserError(f"{source}: scaler={scaler!r} is not the state of a GradScaler")
    if cfg.dtype != "float16":
        if scaler:
            raise UserError(f"{source}: scaler has a loss scale; dtype={cfg.dtype!r} takes none")
        return None
    scale, finite = scaler.get("scale"), whole_number(scaler.get("_growth_tracker"))
    if not isinstance(scale, int | float) or not 0 < scale <= FLOAT32_MAX or finite is None:
        raise UserError(
            f"{source}: scaler={scaler!r} has no scale and growth tracker, which dtype='float16' "
            "needs; start from the weights with init_from"
        )
    for name, value in _scaler_settings().items():
        if not np.array_equal(scaler.get(name, value), value):
            raise UserError(f"{source}: scaler.{name} is {scaler[name]!r}; it is {value!r} here")
    return LossScale(jnp.float32(scale), jnp.int32(finite), jnp.int32(0))


def _scaler(loss_scale: LossScale | None) -> dict[str, Any]:
    """The state dict of torch.amp.GradScaler, which is empty where there is no loss scale."""
    if loss_scale is None:
        return {}
    return {
        "scale": float(loss_scale.scale),
        **_scaler_settings(),
        "_growth_tracker": int(loss_scale.finite_steps),
    }


def _scaler_settings() -> dict[str, Any]:
    return {
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": LOSS_SCALE_GROWTH_INTERVAL,
    }


def _rate_note(stored: Any, rate: float) -> list[str]:
    if not isinstance(stored, int | float):
        return []
    if math.isclose(stored, rate, rel_tol=1e-6, abs_tol=1e-12):
        return []
    return [
        f"note: the next update had the learning rate {stored:.6g} in PyTorch; by the schedule of "
        f"the config it has {rate:.6g}"
    ]
