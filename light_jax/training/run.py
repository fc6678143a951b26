"""Everything a run needs before its first step. This is where a run is refused, with nothing
written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from light_jax.checkpoint import store
from light_jax.checkpoint.weights import load_weights
from light_jax.config import TrainingConfig
from light_jax.data import BatchLoader, TokenStream
from light_jax.parallel.devices import memory_limit, memory_of_machine, out_of_memory
from light_jax.parallel.hosts import together
from light_jax.parallel.sharding import batch_sharding, local_rows, replicated, state_shardings
from light_jax.state import HostState, Run, Tag, TrainState
from light_jax.training.preflight import inspect, like_the_resumed
from light_jax.training.step import init_params, init_state, make_eval_step, make_train_step
from light_llm.checkpoint.layout import locate_weights, steadily
from light_llm.errors import UserError


def batches(run: Run, first_step: int, last_step: int) -> BatchLoader:
    """This process's part of the batches of steps first to last - 1."""
    return BatchLoader(
        run.train_stream,
        batch_size=run.cfg.batch_size,
        first_step=first_step,
        last_step=last_step,
        accum=run.cfg.gradient_accumulation_steps,
        rows=run.rows,
        num_workers=run.cfg.num_workers,
    )


def prepare(cfg: TrainingConfig, resume: str | None) -> Run:
    """Check and load everything that the config names: data, checkpoint, weights.

    Raises:
        UserError: one of these cannot be used.
    """
    tag = None if resume is None else store.find(resume, Path(cfg.checkpoint_dir))
    cfg = like_the_resumed(cfg, tag)
    mesh, streams, host, changes = together(lambda: _inspect(cfg, tag))
    abstract, shardings = blank_state(cfg, mesh)
    _check_memory(cfg, abstract, shardings, mesh)
    with out_of_memory("the state of the run"):
        state = jax.block_until_ready(_first_state(cfg, tag, abstract, shardings))
    return Run(
        cfg=cfg,
        mesh=mesh,
        train_stream=streams[0],
        val_stream=streams[1],
        rows=local_rows(cfg.batch_size, mesh),
        shardings=shardings,
        state=state,
        host=host,
        resumed=tag,
        changes=changes,
        num_params=sum(leaf.size for leaf in jax.tree.leaves(abstract.params)),
    )


def _first_state(
    cfg: TrainingConfig, tag: Tag | None, abstract: TrainState, shardings: TrainState
) -> TrainState:
    """From a checkpoint, from `init_from` or from the seed, laid out by `shardings`."""
    if tag is not None:
        return store.load(tag, cfg, abstract, shardings)
    if cfg.init_from is not None:
        weights = together(lambda: _initial_weights(cfg, shardings.weights))
        return jax.jit(lambda w: init_state(cfg, w), out_shardings=shardings)(weights)
    return jax.jit(lambda: init_state(cfg, init_params(cfg)), out_shardings=shardings)()


def _check_memory(
    cfg: TrainingConfig, abstract: TrainState, shardings: TrainState, mesh: Mesh
) -> None:
    """Before any of it is allocated.

    Raises:
        UserError: the machine cannot hold a step's tokens, or a device its part of the state.
    """
    memory = memory_of_machine()
    tokens = 4 * cfg.gradient_accumulation_steps * cfg.batch_size * (cfg.seq_len + 1)
    if tokens > memory:
        raise UserError(
            f"the tokens of one step take {tokens / 2**30:,.1f} GiB where the machine holds "
            f"{memory / 2**30:,.1f} GiB; lower batch_size={cfg.batch_size} or "
            f"gradient_accumulation_steps={cfg.gradient_accumulation_steps}"
        )
    device = mesh.local_devices[0]
    parts = jax.tree.map(
        lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
        abstract,
        shardings,
    )
    # CPU devices share the machine's memory
    sharing = len(mesh.local_devices) if device.platform == "cpu" else 1
    held, limit = sharing * sum(jax.tree.leaves(parts)), memory_limit(device)
    if limit is not None and held > limit:
        raise UserError(
            f"the state (weights and optimizer) takes {held / 2**30:,.1f} GiB where "
            f"{device.device_kind} holds {limit / 2**30:,.1f} GiB; use a smaller model, or "
            "mesh.fsdp over more devices"
        )


def blank_state(cfg: TrainingConfig, mesh: Mesh) -> tuple[TrainState, TrainState]:
    """(shapes and dtypes, shardings) of a run's state; nothing is computed or allocated."""
    abstract = jax.eval_shape(lambda: init_state(cfg, init_params(cfg)))
    return abstract, state_shardings(abstract, cfg.model, mesh)


def _inspect(
    cfg: TrainingConfig, tag: Tag | None
) -> tuple[Mesh, tuple[TokenStream, TokenStream | None], HostState, list[str]]:
    """Check, before anything large is made, the mesh, the data and that they continue the tag."""
    found = inspect(cfg, tag)
    assert found.mesh is not None
    assert found.train is not None
    assert found.host is not None
    return found.mesh, (found.train, found.val), found.host, found.changes


def _initial_weights(cfg: TrainingConfig, shardings: Any) -> Any:
    """The weights that init_from names, laid out by `shardings`."""
    assert cfg.init_from is not None
    source = cfg.init_from
    return steadily(
        lambda: locate_weights(source),
        lambda files: load_weights(files.weights, cfg.model, shardings),
    )


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
