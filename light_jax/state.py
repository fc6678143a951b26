"""The data that a run is made of, without behaviour."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from light_jax.config import TrainingConfig
from light_jax.data.mixed import Stream
from light_llm.checkpoint.reading import Checkpoint, Record

Params = Any  # the nnx.State of nnx.Param, a pytree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossScale:
    """float16's dynamic loss scale (Micikevicius et al. 2018)."""

    scale: jax.Array  # float32
    finite_steps: jax.Array  # int32, in a row
    skipped_steps: jax.Array  # int32, in a row


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes."""

    step: jax.Array  # int32, updates made
    params: Params  # what the model computes with: float32, or bfloat16 with a master copy
    master: Params | None  # float32 (bf16_model_weights only)
    average: Params | None  # float32, of the weights over the steps (ema_decay only)
    opt_state: Any
    loss_scale: LossScale | None  # float16 only
    loss_sum: jax.Array  # float32, over the steps since the last log line
    loss_count: jax.Array  # int32, of those steps
    bad_step: jax.Array  # int32, the step (from 0) that was not finite, or -1

    @property
    def weights(self) -> Params:
        """The float32 parameters, which a checkpoint's weights file holds."""
        return self.params if self.master is None else self.master

    @property
    def parts(self) -> str:
        """What takes its memory, for messages."""
        return f"weights{'' if self.average is None else ', their average'} and optimizer"

    @property
    def scale(self) -> jax.Array:
        """What the loss is multiplied by before its gradient: 1 unless float16."""
        return jnp.float32(1) if self.loss_scale is None else self.loss_scale.scale


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Losses:
    """Of a micro-batch or a step, each a mean over tokens, float32."""

    cross_entropy: jax.Array  # what is meant by `loss` elsewhere
    z: jax.Array | None  # z_loss · log² Z; None without z_loss


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    loss: jax.Array  # of this step
    mean_loss: jax.Array  # over the steps since the last log line
    grad_norm: jax.Array  # after unscaling, before clipping
    loss_scale: jax.Array  # 1 unless float16
    skipped: jax.Array  # bool, float16's overflow
    bad_step: jax.Array
    z_loss: jax.Array | None  # of this step; None without z_loss


@dataclasses.dataclass
class HostState:
    """The part of a run's state that lives on the host."""

    run: str  # an id that all tags of a run share, through every resume
    fingerprint: list[dict[str, Any]]  # of the training shards
    best_val_loss: float | None = None
    best_val_step: int | None = None
    evaluations_since_best: int = 0
    wandb_run_id: str | None = None
    trackio_run: str | None = None  # its name
    spikes: dict[str, Any] | None = None  # of reporting.spikes.Monitor, as of the last step
    evaluation_due: bool = False  # after this step: a signal or a failing log stopped one


@dataclasses.dataclass(frozen=True)
class Tag:
    """A checkpoint to resume from, and where it stands in the history of its directory."""

    checkpoint: Checkpoint
    record: Record  # the checkpoint's own

    @property
    def prefix(self) -> Path:
        return self.checkpoint.files.prefix

    @property
    def run(self) -> str:
        return self.record.run

    @property
    def generation(self) -> int:
        return self.record.generation

    @property
    def step(self) -> int:
        return self.record.step

    @property
    def order(self) -> tuple[int, int]:
        """A resumed run's tags are newer than those that it left behind, at any step."""
        return self.generation, self.step


@dataclasses.dataclass
class Run:
    """A run that is ready to step; `leaves`, which are `state`, and `host` change as it goes on."""

    cfg: TrainingConfig
    mesh: Mesh
    train_stream: Stream
    val_stream: Stream | None
    rows: list[int]  # the rows of a global batch that this process holds
    shardings: TrainState
    leaves: list[jax.Array]
    """Of the state, in jax.tree's order; shapes and shardings alone until `run.fill`. The compiled
    step takes and returns them: a call with the state's Variables would cost as much again."""
    host: HostState
    resumed: Tag | None
    changes: list[str]  # settings that differ from the resumed run's
    num_params: int

    @property
    def state(self) -> TrainState:
        """What `leaves` are; made anew each time."""
        return jax.tree.unflatten(jax.tree.structure(self.shardings), self.leaves)

    @state.setter
    def state(self, state: TrainState) -> None:
        self.leaves = jax.tree.leaves(state)

    @property
    def steps_done(self) -> int:
        """Steps made before this start."""
        return 0 if self.resumed is None else self.resumed.step

    @property
    def stops_early(self) -> bool:
        """Whether as many evaluations in a row as early_stopping_patience gave no better loss."""
        patience = self.cfg.early_stopping_patience
        return patience is not None and self.host.evaluations_since_best >= patience

    @property
    def owes_evaluation(self) -> bool:
        """Whether an evaluation was due after the last step, and was stopped."""
        return self.host.evaluation_due and self.val_stream is not None

    @property
    def is_finished(self) -> bool:
        """Whether a resume would find nothing to do."""
        done = int(self.state.step) >= self.cfg.num_steps or self.stops_early
        return done and not self.owes_evaluation


def params_of(cfg: TrainingConfig, weights: Params) -> tuple[Params, Params | None]:
    """(what the model computes with, the float32 master copy if that is not the same)."""
    return (to_bfloat16(weights), weights) if cfg.bf16_model_weights else (weights, None)


def bytes_per_device(state: Any) -> int:
    """What a state takes on one device, whether it is there or has only shapes and shardings."""
    leaves = jax.tree.leaves(state)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def to_bfloat16(weights: Params) -> Params:
    return jax.tree.map(lambda w: w.astype(jnp.bfloat16), weights)
