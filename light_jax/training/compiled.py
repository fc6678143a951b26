"""The steps of a run, compiled ahead of it, and the shapes that they are compiled for."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from light_jax.config import TrainingConfig
from light_jax.parallel import cache
from light_jax.parallel.devices import out_of_memory
from light_jax.parallel.hosts import together
from light_jax.parallel.sharding import batch_sharding, replicated, state_shardings
from light_jax.reporting.console import size
from light_jax.state import Run, TrainState, bytes_per_device
from light_jax.training.memory import StepMemory, check_step, remedies, room
from light_jax.training.step import init_params, init_state, make_eval_step, make_train_step


def blank_state(cfg: TrainingConfig, mesh: Mesh) -> tuple[TrainState, TrainState]:
    """(shapes, dtypes and shardings, the shardings alone) of a run's state.

    Nothing is computed or allocated.
    """
    shapes = jax.eval_shape(lambda: init_state(cfg, init_params(cfg)))
    shardings = state_shardings(shapes, cfg.model, mesh)
    blank = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    return blank, shardings


@dataclasses.dataclass(frozen=True)
class Steps:
    """The compiled steps of a run."""

    train: Callable[..., Any]
    evaluate: Callable[..., Any] | None  # with val_data
    memory: StepMemory | None  # of the training step
    seconds: float  # that compiling took
    from_cache: bool  # the training step was compiled by an earlier start

    def describe(self) -> list[str]:
        """What a person reads before training starts."""
        source = " (from the cache)" if self.from_cache else ""
        lines = [f"compiled    {self.seconds:.1f} s{source}"]
        if self.memory is not None:
            lines.append(f"memory      {size(self.memory.total)} per device for the compiled step")
        return lines


def compile_steps(run: Run) -> Steps:
    """Compile the training and the evaluation step ahead of the loop.

    The run's state may be shapes alone: nothing is allocated.

    Raises:
        UserError: no device here can hold the step, with what makes it smaller.
    """
    return together(lambda: _compile(run))


def _compile(run: Run) -> Steps:
    cfg, mesh = run.cfg, run.mesh
    there, hits, start = room(mesh), cache.hits(), time.perf_counter()
    given = f"the arguments are {size(bytes_per_device(run.state))} per device"
    sizes = given if there is None else f"{given}, and {there}"
    with out_of_memory(f"compiling the step ({sizes})", remedies(run)):
        train = compile_train_step(cfg, mesh, run.shardings, run.state)
        from_cache = cache.hits() > hits
        memory = step_memory(train)
        if memory is not None and there is not None:
            check_step(run, memory, there)
        evaluate = None if run.val_stream is None else _compile_evaluation(run)
    return Steps(train, evaluate, memory, time.perf_counter() - start, from_cache)


def _compile_evaluation(run: Run) -> Any:
    """The compiled (params, tokens_BS, mask_B) -> (sum of the losses, number of tokens)."""
    cfg, everywhere, rows = run.cfg, replicated(run.mesh), batch_sharding(run.mesh, 0)
    evaluate = jax.jit(
        make_eval_step(cfg, run.mesh),
        in_shardings=(run.shardings.params, rows, rows),
        out_shardings=(everywhere, everywhere),
    )
    tokens = jax.ShapeDtypeStruct((cfg.batch_size, cfg.seq_len + 1), jnp.int32)
    mask = jax.ShapeDtypeStruct((cfg.batch_size,), jnp.float32)
    return evaluate.lower(run.state.params, tokens, mask).compile()


def compile_train_step(
    cfg: TrainingConfig, mesh: Mesh, shardings: TrainState, state: TrainState
) -> Any:
    """The compiled (state, tokens_ABS, learning rate) -> (state, metrics), the state donated."""
    everywhere = replicated(mesh)
    train = jax.jit(
        make_train_step(cfg, mesh),
        in_shardings=(shardings, batch_sharding(mesh, 1), everywhere),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
    )
    shape = (cfg.gradient_accumulation_steps, cfg.batch_size, cfg.seq_len + 1)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    return train.lower(state, tokens, rate).compile()


def step_memory(compiled: Any) -> StepMemory | None:
    """What a compiled step takes on one device; None if XLA does not report it."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    new_outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return StepMemory(analysis.argument_size_in_bytes, analysis.temp_size_in_bytes + new_outputs)
