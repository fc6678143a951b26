"""The steps of a run, compiled ahead of it, and the shapes that they are compiled for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from light_jax.config import TrainingConfig
from light_jax.parallel.devices import out_of_memory
from light_jax.parallel.sharding import batch_sharding, replicated, state_shardings
from light_jax.state import Run, TrainState
from light_jax.training.step import init_params, init_state, make_eval_step, make_train_step


def blank_state(cfg: TrainingConfig, mesh: Mesh) -> tuple[TrainState, TrainState]:
    """(shapes and dtypes, shardings) of a run's state; nothing is computed or allocated."""
    abstract = jax.eval_shape(lambda: init_state(cfg, init_params(cfg)))
    return abstract, state_shardings(abstract, cfg.model, mesh)


@dataclasses.dataclass(frozen=True)
class Steps:
    """The compiled steps of a run."""

    train: Callable[..., Any]
    evaluate: Callable[..., Any] | None  # with val_data
    memory: int | None  # bytes that the training step takes on one device


@out_of_memory("compiling the step")
def compile_steps(run: Run) -> Steps:
    """Compile the training and the evaluation step ahead of the loop."""
    cfg, mesh = run.cfg, run.mesh
    compiled = compile_train_step(cfg, mesh, run.shardings, run.state)
    everywhere = replicated(mesh)
    evaluate = None
    if run.val_stream is not None:
        rows = batch_sharding(mesh, 0)
        jitted = jax.jit(
            make_eval_step(cfg, mesh),
            in_shardings=(run.shardings.params, rows, rows),
            out_shardings=(everywhere, everywhere),
        )
        tokens = jax.ShapeDtypeStruct((cfg.batch_size, cfg.seq_len + 1), jnp.int32)
        mask = jax.ShapeDtypeStruct((cfg.batch_size,), jnp.float32)
        evaluate = jitted.lower(run.state.params, tokens, mask).compile()
    return Steps(compiled, evaluate, _memory(compiled))


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


def _memory(compiled: Any) -> int | None:
    """Bytes of arguments, new outputs and temporaries; None if XLA does not report them."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )
