"""llm-train's compiled step and the PyTorch reference, step by step on the same batches."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from conversion import to_torch
from conversion.mapping import TIED_KEY
from light_jax.config import TrainingConfig
from light_jax.parallel.sharding import to_global
from light_jax.parity.reference import ReferenceTrainer, Update
from light_jax.state import Run
from light_jax.training.compiled import compile_steps
from light_jax.training.optimizer import learning_rate
from light_jax.training.run import batches, fill, prepare
from light_llm.errors import UserError


class Tolerance(NamedTuple):
    """The largest differences that still count as equal, relative as in `Row`."""

    loss: float
    grad_norm: float
    weights: float


TOLERANCE = {
    "float32": Tolerance(1e-5, 1e-4, 1e-3),
    "bfloat16": Tolerance(2e-3, 5e-2, 0.1),
    "float16": Tolerance(1e-3, 2e-2, 0.1),
}


def tolerance_of(cfg: TrainingConfig) -> Tolerance:
    """Of the coarsest numbers that a step computes with: muon's own may be the only of 16 bits."""
    coarse = cfg.optimizer.type == "muon" and cfg.dtype == "float32"
    return TOLERANCE[cfg.optimizer.muon_dtype if coarse else cfg.dtype]


@dataclasses.dataclass(frozen=True)
class Row:
    """One step in both frameworks."""

    step: int  # from 1
    jax: Update
    torch: Update
    weights_max_abs: float  # after the update, the largest difference of an element
    weights_where: str  # the tensor with that element
    weights: float  # |W_jax - W_torch| / |W_torch - W_start| over all tensors together

    @property
    def loss(self) -> float:
        return _relative(self.jax.loss, self.torch.loss)

    @property
    def grad_norm(self) -> float:
        """Infinite where only one of them overflowed (float16)."""
        return _relative(self.jax.grad_norm, self.torch.grad_norm)

    @property
    def finite(self) -> bool:
        return self.jax.finite and self.torch.finite

    def beyond(self, tolerance: Tolerance) -> list[str]:
        """The quantities that differ by more than the tolerance."""
        return [
            name for name in Tolerance._fields if getattr(self, name) > getattr(tolerance, name)
        ]


def comparable(cfg: TrainingConfig) -> tuple[TrainingConfig, list[str]]:
    """(the config with what cannot be compared turned off, a line for each such change)."""
    model, notes = cfg.model, []
    rates = {
        "model.dropout": model.dropout,
        "model.attention.dropout": model.attention.dropout,
        "model.ffn.dropout": model.ffn.dropout,
    }
    for key, rate in rates.items():
        if rate > 0:
            notes.append(
                f"{key}={rate} is off (0.0) in both: the frameworks draw different random bits"
            )
    off = {"dropout": 0.0}
    model = model.model_copy(
        update={
            "dropout": 0.0,
            "attention": model.attention.model_copy(update=off),
            "ffn": model.ffn.model_copy(update=off),
        }
    )
    return cfg.model_copy(update={"model": model}), notes


def lockstep(
    cfg: TrainingConfig, steps: int, reference_cfg: TrainingConfig | None = None
) -> Iterator[Row]:
    """The first `steps` steps of a run in both frameworks; ends early after one that is not finite.

    Starts where llm-train would without --resume (seed or init_from), writes nothing. Dropout must
    be off: see `comparable`.

    Args:
        reference_cfg: PyTorch's config, if it is not the same.

    Raises:
        UserError: the config, or a file that it names, cannot be used; or it has fewer steps.
    """
    if not 1 <= steps <= cfg.num_steps:
        raise UserError(
            f"--steps={steps} must be from 1 to the config's num_steps={cfg.num_steps}, which the "
            "schedule depends on"
        )
    with tempfile.TemporaryDirectory() as nowhere:  # the run's own folder may hold checkpoints
        unused = {"checkpoint_dir": nowhere, "val_data": None, "use_wandb": False}
        cfg = cfg.model_copy(update=unused)
        run = prepare(cfg, None)
    train_step = compile_steps(run).train
    fill(run)
    start = _weights(run)
    reference = ReferenceTrainer(reference_cfg or cfg, start)
    with batches(run, 0, steps) as loader:
        for step, tokens_ABS in enumerate(loader, 1):
            tokens = to_global(tokens_ABS, run.rows, cfg.batch_size, 1, run.mesh)
            rate = np.float32(learning_rate(cfg, step - 1))
            run.leaves, metrics = train_step(run.leaves, tokens, rate)
            ours, theirs = _update(metrics), reference.step(tokens_ABS)
            row = Row(step, ours, theirs, *_apart(_weights(run), reference.weights(), start))
            yield row
            if not row.finite:
                return


def _update(metrics: Any) -> Update:
    norm = None if bool(metrics.skipped) else float(metrics.grad_norm)
    z_loss = None if metrics.z_loss is None else float(metrics.z_loss)
    return Update(float(metrics.loss), norm, int(metrics.bad_step) < 0, z_loss)


def _weights(run: Run) -> dict[str, np.ndarray]:
    return to_torch(run.state.weights, run.cfg.model)


def _apart(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], start: dict[str, np.ndarray]
) -> tuple[float, str, float]:
    """(largest difference of an element, its tensor, difference relative to the total change)."""
    assert ours.keys() - {TIED_KEY} == theirs.keys() - {TIED_KEY}
    largest = {name: float(np.abs(ours[name] - theirs[name]).max()) for name in theirs}
    where = max(largest, key=lambda name: largest[name])
    apart = math.sqrt(sum(_squares(ours[name] - theirs[name]) for name in theirs))
    travelled = math.sqrt(sum(_squares(theirs[name] - start[name]) for name in theirs))
    return largest[where], where, apart / travelled if travelled else _relative(apart, 0.0)


def _squares(array: np.ndarray) -> float:
    return float(np.sum(np.square(array, dtype=np.float64)))


def _relative(ours: float | None, theirs: float | None) -> float:
    """|ours - theirs| / |theirs|; 0 where they are equal, infinite where only one is a number."""
    if ours == theirs:
        return 0.0
    if ours is None or theirs is None or not math.isfinite(ours - theirs) or theirs == 0:
        return math.inf
    return abs(ours - theirs) / abs(theirs)
