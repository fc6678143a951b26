"""Sums of losses by the evaluation step of training, over all devices."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from light_jax.checkpoint.weights import load_weights
from light_jax.evaluation.plan import Plan
from light_jax.parallel.cache import keep_compiled
from light_jax.parallel.devices import out_of_memory
from light_jax.parallel.hosts import initialize, is_main, together
from light_jax.parallel.sharding import batch_shards, local_rows, make_mesh, to_global
from light_jax.sections import MeshConfig
from light_jax.state import Params, TrainState, params_of
from light_jax.training.compiled import blank_state, compile_eval_step
from light_llm.checkpoint.digests import verify
from light_llm.checkpoint.parts import is_weights
from light_llm.checkpoint.reading import Checkpoint, read_checkpoint, steadily
from light_llm.errors import UserError

Result = TypeVar("Result")

REMEDIES = ("a smaller --batch-size", "mesh.fsdp over more devices in a run's config")


def start(make_plan: Callable[[], Plan]) -> OnJax:
    """Join the other processes, if there are any, and load the model; all of them call it."""
    if not jax.distributed.is_initialized():
        initialize()
    keep_compiled()
    return OnJax(together(make_plan))


class OnJax:
    """A checkpoint's model on the mesh of its config; see `evaluate.Model`."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.is_main = plan, is_main()
        self._mesh = mesh_for(plan.cfg.mesh)
        self.batch_size = _batch_size(plan, batch_shards(self._mesh))
        self.rows: list[int] | None = local_rows(self.batch_size, self._mesh)
        device = self._mesh.devices.flat[0]
        self.where = f"jax on {self._mesh.size} × {device.device_kind}"
        cfg = plan.cfg.model_copy(update={"batch_size": self.batch_size})
        with self.guarded():
            state, shardings = blank_state(cfg, self._mesh)
            self._evaluate = compile_eval_step(cfg, self._mesh, shardings.params, state.params)
            self.step, self._params = together(lambda: _load(plan, shardings))

    def loss_sum(self, tokens_BS: np.ndarray, mask_B: np.ndarray) -> Any:
        """On the devices, and perhaps not there yet."""
        rows = self.rows or []
        tokens, mask = (
            to_global(part, rows, self.batch_size, 0, self._mesh) for part in (tokens_BS, mask_B)
        )
        return self._evaluate(self._params, tokens, mask)[0]

    def guarded(self) -> contextlib.AbstractContextManager[None]:
        return out_of_memory("the evaluation", REMEDIES)

    def together(self, read: Callable[[], Result]) -> Result:
        return together(read)


def mesh_for(cfg: MeshConfig) -> Mesh:
    """The mesh of a config if it covers the devices that are here, else all as data parallel."""
    try:
        return make_mesh(cfg)
    except UserError:
        return make_mesh(MeshConfig())


def _batch_size(plan: Plan, shards: int) -> int:
    """Rows of a batch, a multiple of `shards`; no more than a path's windows fill.

    Raises:
        UserError: the one that was asked for does not divide over the devices.
    """
    asked = plan.batch_size
    if asked is not None and asked % shards:
        lower, upper = asked // shards * shards, -(-asked // shards) * shards
        raise UserError(
            f"--batch-size={asked} does not divide over {shards} devices; use "
            f"{f'{lower} or {upper}' if lower else upper}"
        )
    wanted = min(plan.cfg.batch_size if asked is None else asked, plan.most_windows)
    return -(-wanted // shards) * shards


def _load(plan: Plan, shardings: TrainState) -> tuple[int | None, Params]:
    """The step of the checkpoint, and the weights as its model computes with them."""

    def read(checkpoint: Checkpoint) -> tuple[int | None, Params]:
        verify(checkpoint, is_weights)
        weights = load_weights(checkpoint.files.weights, plan.cfg.model, shardings.weights)
        return checkpoint.step, weights

    step, weights = steadily(lambda: read_checkpoint(plan.prefix), read)
    if plan.cfg.bf16_model_weights:
        to_params = jax.jit(lambda w: params_of(plan.cfg, w)[0], out_shardings=shardings.params)
        weights = to_params(weights)
    return step, weights
