"""Everything a run needs before its first step. This is where a run is refused, with nothing
written."""

from __future__ import annotations

import uuid
import warnings
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from light_jax.checkpoint import place, store
from light_jax.checkpoint.weights import check_weights, load_weights
from light_jax.config import TrainingConfig
from light_jax.data import BatchLoader, TokenStream, warn_of_overlap
from light_jax.parallel.devices import out_of_memory
from light_jax.parallel.hosts import is_main, together
from light_jax.parallel.sharding import check_batch, local_rows, make_mesh
from light_jax.reporting.wandb_run import check_wandb
from light_jax.state import HostState, Run, Tag, TrainState
from light_jax.training.compiled import blank_state
from light_jax.training.memory import check_state, remedies
from light_jax.training.step import init_params, init_state
from light_llm.checkpoint.layout import (
    WEIGHTS,
    locate_weights,
    read_checkpoint,
    steadily,
    verify,
)
from light_llm.models.transformer.config import TransformerConfig
from light_llm.preprocess.manifest import check_vocabulary


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
    """Check everything that the config names: data, checkpoint, weights, memory.

    Nothing large is made yet: that is `fill`, once the steps are compiled and found to fit.

    Raises:
        UserError: one of these cannot be used.
    """
    tag = None if resume is None else store.find(resume, Path(cfg.checkpoint_dir))
    mesh, streams, host, changes = together(lambda: _inspect(cfg, tag))
    state, shardings = blank_state(cfg, mesh)
    together(lambda: check_state(cfg, state, mesh))
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
        num_params=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    )


def fill(run: Run) -> None:
    """Make the run's state: from its checkpoint, from `init_from` or from the seed.

    Raises:
        UserError: a file cannot be used after all, or memory runs out.
    """
    with out_of_memory("the state of the run", remedies(run)):
        run.state = jax.block_until_ready(_first_state(run))


def _first_state(run: Run) -> TrainState:
    cfg, shardings = run.cfg, run.shardings
    if run.resumed is not None:
        return store.load(run.resumed, cfg, run.state, shardings)
    if cfg.init_from is not None:
        weights = together(lambda: _initial_weights(cfg, shardings.weights))
        return jax.jit(lambda w: init_state(cfg, w), out_shardings=shardings)(weights)
    return jax.jit(lambda: init_state(cfg, init_params(cfg)), out_shardings=shardings)()


def _inspect(
    cfg: TrainingConfig, tag: Tag | None
) -> tuple[Mesh, tuple[TokenStream, TokenStream | None], HostState, list[str]]:
    """Check, before anything large is made, the mesh, the data and that they continue the tag."""
    mesh = make_mesh(cfg.mesh)
    check_batch(cfg.batch_size, mesh)
    if cfg.use_wandb and is_main():
        check_wandb()
    if is_main():
        place.check_writable(cfg, tag)
    train_stream = _stream(cfg, cfg.train_data, "train_data")
    val_stream = None if cfg.val_data is None else _stream(cfg, cfg.val_data, "val_data")
    if val_stream is not None and is_main():
        warn_of_overlap(train_stream.shards, val_stream.shards)
    if is_main():
        _warn_of_positions(cfg)
    if tag is None and cfg.init_from is not None:
        _verify_weights(cfg.init_from, cfg.model)
    if tag is None:
        host = HostState(uuid.uuid4().hex, train_stream.fingerprint)
        return mesh, (train_stream, val_stream), host, []
    host, changes = store.check_resumable(tag, cfg, train_stream.fingerprint)
    return mesh, (train_stream, val_stream), host, changes


def _warn_of_positions(cfg: TrainingConfig) -> None:
    """Warn of learned positions that no window reaches."""
    trained, rows = cfg.seq_len, cfg.model.max_seq_len
    if cfg.model.positional.encoding == "learned" and trained < rows:
        warnings.warn(
            f"seq_len={trained} trains only positions 0 to {trained - 1}; the other "
            f"{rows - trained} learned ones get no gradient and stay noise: raise seq_len, or "
            f"lower model.max_seq_len={rows} to it",
            stacklevel=2,
        )


def _verify_weights(path_or_prefix: str, model: TransformerConfig) -> None:
    """Check that init_from has the model's weights, with the digests of a config.json beside them.

    Raises:
        UserError: they are missing, damaged or do not fit.
    """
    if locate_weights(path_or_prefix).config.is_file():
        steadily(
            lambda: read_checkpoint(path_or_prefix),
            lambda checkpoint: verify(checkpoint, lambda name: name == WEIGHTS),
        )
    steadily(
        lambda: locate_weights(path_or_prefix), lambda files: check_weights(files.weights, model)
    )


def _initial_weights(cfg: TrainingConfig, shardings: Any) -> Any:
    """The weights that init_from names, laid out by `shardings`."""
    assert cfg.init_from is not None
    source = cfg.init_from
    return steadily(
        lambda: locate_weights(source),
        lambda files: load_weights(files.weights, cfg.model, shardings),
    )


def _stream(cfg: TrainingConfig, paths: str | list[str], field: str) -> TokenStream:
    stream = TokenStream(
        paths, seq_len=cfg.seq_len, seed=cfg.seed, vocab_size=cfg.model.vocab_size, field=field
    )
    check_vocabulary((Path(shard.path) for shard in stream.shards), cfg.model.vocab_size, field)
    return stream
