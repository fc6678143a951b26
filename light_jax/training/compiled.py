"""The steps of a run, compiled ahead of it, and the shapes that they are compiled for."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from light_jax.config import TrainingConfig
from light_jax.parallel import cache
from light_jax.parallel.devices import out_of_memory
from light_jax.parallel.hosts import together
from light_jax.parallel.sharding import batch_sharding, replicated, state_shardings
from light_jax.reporting.units import size
from light_jax.state import Params, Run, TrainState
from light_jax.training.memory import (
    StepMemory,
    check_step,
    memory_of,
    memory_of_refused,
    remedies,
    room,
)
from light_jax.training.step import make_eval_step, make_train_step, state_shapes
from light_llm.errors import UserError, is_out_of_memory, one_line

# XLA's options for the training step on several GPUs. "Overlap on GPUs" in docs/performance.md has
# what was measured, and the options that are not here.
GPU_OPTIONS = {
    # A turn of the layers' loop sums over the devices the gradients that the turn before it made,
    # beside its own matmuls. Without it, nothing runs beside the sum at the end of a turn. A
    # reduce-scatter of fsdp is still an all-reduce when XLA decides this.
    "xla_gpu_enable_pipelined_all_reduce": True,
}
GPU_OPTIONS_OF = (0, 10)  # jax 0.12 refuses to compile with this name; others were not measured


def blank_state(cfg: TrainingConfig, mesh: Mesh) -> tuple[TrainState, TrainState]:
    """(shapes, dtypes and shardings, the shardings alone) of a run's state.

    Nothing is computed or allocated.
    """
    shapes = state_shapes(cfg)
    shardings = state_shardings(shapes, cfg.model, mesh)
    blank = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    return blank, shardings


@dataclasses.dataclass(frozen=True)
class Attempt:
    """The training step, compiled or refused for its size."""

    step: Any | None
    """What `compile_train_step` returns; None where the compiler refused it."""
    memory: StepMemory | None  # None where XLA does not report it
    seconds: float  # that this took
    from_cache: bool  # compiled by an earlier start


@dataclasses.dataclass(frozen=True)
class Steps:
    """The compiled steps of a run."""

    train: Callable[..., Any]  # what `compile_train_step` returns
    evaluate: Callable[..., Any] | None  # with val_data
    memory: StepMemory | None  # of the training step
    seconds: float  # that compiling took
    from_cache: bool  # the training step was compiled by an earlier start

    def describe(self) -> list[str]:
        """What a person reads before training starts."""
        source = " (from the cache)" if self.from_cache else ""
        lines = [f"compiled    {self.seconds:.1f} s{source}"]
        if self.memory is not None and self.memory.total is not None:
            lines.append(f"memory      {size(self.memory.total)} per device for the compiled step")
        return lines


def compile_steps(run: Run) -> Steps:
    """Compile the training and the evaluation step ahead of the loop.

    The run's state may be shapes alone: nothing is allocated.

    Raises:
        UserError: no device here can hold the step, with what makes it smaller; or it does not
            compile.
    """
    return together(lambda: _compile(run))


def _compile(run: Run) -> Steps:
    cfg, mesh, resuming = run.cfg, run.mesh, run.resumed is not None
    start = time.perf_counter()
    tried = attempt(cfg, mesh, run.shardings, run.state)
    if tried.memory is not None:
        check_step(cfg, mesh, tried.memory, room(mesh.local_devices), resuming=resuming)
    assert tried.step is not None
    evaluate = None
    if run.val_stream is not None:
        advice = remedies(cfg, mesh, resuming=resuming)
        with out_of_memory("compiling the evaluation", advice):
            evaluate = compile_eval_step(cfg, mesh, run.shardings.params, run.state.params)
    seconds = time.perf_counter() - start
    return Steps(tried.step, evaluate, tried.memory, seconds, tried.from_cache)


def attempt(cfg: TrainingConfig, mesh: Mesh, shardings: TrainState, state: TrainState) -> Attempt:
    """Compile the training step; what is too large for a device is told and not raised.

    Args:
        state: shapes, dtypes and shardings are enough.

    Raises:
        UserError: it does not compile, and memory is not why.
    """
    hits, start = cache.hits(), time.perf_counter()
    step = None
    try:
        step = compile_train_step(cfg, mesh, shardings, state)
        memory = memory_of(step)
    except (
        MemoryError,
        RuntimeError,
        ValueError,
        NotImplementedError,
    ) as error:  # jax's are RuntimeErrors
        if not is_out_of_memory(error):
            kind = mesh.devices.flat[0].device_kind
            raise UserError(
                f"the step does not compile for {mesh.size} × {kind} ({one_line(error, 300)}); "
                "try another mesh, attention or dtype"
            ) from None
        memory = memory_of_refused(str(error), cfg, state, mesh)
    return Attempt(step, memory, time.perf_counter() - start, cache.hits() > hits)


def compile_eval_step(cfg: TrainingConfig, mesh: Mesh, shardings: Params, params: Params) -> Any:
    """The compiled (params, tokens_BS, mask_B) -> (sum of the losses, number of tokens).

    Args:
        params: shapes, dtypes and shardings are enough.
    """
    everywhere, rows = replicated(mesh), batch_sharding(mesh, 0)
    evaluate = jax.jit(
        make_eval_step(cfg, mesh),
        in_shardings=(shardings, rows, rows),
        out_shardings=(everywhere, everywhere),
    )
    tokens = jax.ShapeDtypeStruct((cfg.batch_size, cfg.seq_len + 1), jnp.int32)
    mask = jax.ShapeDtypeStruct((cfg.batch_size,), jnp.float32)
    return evaluate.lower(params, tokens, mask).compile()


def compiler_options(mesh: Mesh) -> dict[str, bool]:
    """XLA's options for the training step on these devices: none but on several GPUs, jax 0.10.

    What the user names in XLA_FLAGS is left to the user: an option given here would win over it.
    """
    if mesh.size == 1 or mesh.devices.flat[0].platform != "gpu":
        return {}
    if jax.__version_info__[:2] != GPU_OPTIONS_OF:
        return {}
    named = _flags_of(os.environ.get("XLA_FLAGS", ""))
    return {name: value for name, value in GPU_OPTIONS.items() if name not in named}


def _flags_of(text: str) -> set[str]:
    """The names in XLA_FLAGS. As XLA reads it, a text without dashes is the path of a file."""
    if text.strip() and not text.lstrip().startswith("--"):
        path = Path(text.strip())
        text = path.read_text() if path.is_file() else ""
    return {flag.lstrip("-").partition("=")[0] for flag in text.split()}


def compile_train_step(
    cfg: TrainingConfig, mesh: Mesh, shardings: TrainState, state: TrainState
) -> Any:
    """The compiled (leaves, tokens_ABS, learning rate) -> (leaves, metrics).

    The leaves are the state's, in jax.tree's order; those that go in are donated.
    """
    everywhere, placed = replicated(mesh), jax.tree.leaves(shardings)
    train = jax.jit(
        _over_leaves(make_train_step(cfg, mesh), jax.tree.structure(state)),
        in_shardings=(placed, batch_sharding(mesh, 1), everywhere),
        out_shardings=(placed, everywhere),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )
    shape = (cfg.gradient_accumulation_steps, cfg.batch_size, cfg.seq_len + 1)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    return train.lower(jax.tree.leaves(state), tokens, rate).compile()


def _over_leaves(step: Callable[..., Any], structure: Any) -> Callable[..., Any]:
    """The step of a state, as one of the state's leaves."""

    def train_step(leaves: list[jax.Array], tokens_ABS: jax.Array, lr: jax.Array) -> Any:
        state, metrics = step(jax.tree.unflatten(structure, leaves), tokens_ABS, lr)
        return jax.tree.leaves(state), metrics

    return train_step
