"""Everything a run needs before its first step. This is where a run is refused, with nothing
written."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from light_jax.checkpoint import store
from light_jax.checkpoint.weights import load_weights
from light_jax.config import TrainingConfig
from light_jax.data import BatchLoader
from light_jax.data.index import SOURCE
from light_jax.data.mixed import Stream
from light_jax.parallel.alike import check_alike
from light_jax.parallel.devices import out_of_memory
from light_jax.parallel.hosts import together
from light_jax.parallel.sharding import local_rows
from light_jax.state import HostState, Run, Tag, TrainState
from light_jax.training.compiled import blank_state
from light_jax.training.memory import check_state, check_tokens, remedies, room
from light_jax.training.preflight import inspect, like_the_resumed
from light_jax.training.step import init_params, init_state
from light_llm import __version__
from light_llm.checkpoint.hub import starting_weights
from light_llm.checkpoint.reading import steadily

NAMED_SHARDS = 1000


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
    together(lambda: check_alike("config", _same_everywhere(cfg, resume)))
    tag = None if resume is None else store.find(resume, Path(cfg.checkpoint_dir))
    cfg = like_the_resumed(cfg, tag)
    mesh, streams, host, changes = together(lambda: _inspect(cfg, tag))
    together(lambda: check_alike("shards", _shards(streams)))
    state, shardings = blank_state(cfg, mesh)
    together(lambda: _check_sizes(cfg, state, mesh))
    return Run(
        cfg=cfg,
        mesh=mesh,
        train_stream=streams[0],
        val_stream=streams[1],
        rows=local_rows(cfg.batch_size, mesh),
        shardings=shardings,
        leaves=jax.tree.leaves(state),
        host=host,
        resumed=tag,
        changes=changes,
        num_params=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    )


def _same_everywhere(cfg: TrainingConfig, resume: str | None) -> dict[str, Any]:
    """What all processes must agree on; a path may be another one on each machine."""
    values = cfg.model_dump(mode="json", exclude=set(cfg.path_keys))
    flat = dict(_flat(values))
    return {"light-llm": __version__, "jax": jax.__version__, "--resume": resume} | flat


def _flat(values: dict[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{at}{name}.")
        else:
            yield f"{at}{name}", value


def _shards(streams: tuple[Stream, Stream | None]) -> dict[str, Any]:
    """The shards by name; of many the first ones, and a checksum of all."""
    found: dict[str, Any] = {}
    for name, stream in zip(("train_data", "val_data"), streams, strict=True):
        known = [] if stream is None else stream.fingerprint
        shards = [{k: v for k, v in each.items() if k != SOURCE} for each in known]  # a path's end
        for number, shard in enumerate(shards[:NAMED_SHARDS]):
            found[f"shard {number} of {name}"] = list(shard.values())
        found[f"shards of {name}"] = len(shards)
        found[f"checksum of {name}"] = zlib.crc32(json.dumps(shards).encode())
    return found


def fill(run: Run) -> None:
    """Make the run's state: from its checkpoint, from `init_from` or from the seed.

    Raises:
        UserError: a file cannot be used after all, or memory runs out.
    """
    advice = remedies(run.cfg, run.mesh, resuming=run.resumed is not None)
    with out_of_memory("the state of the run", advice):
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
) -> tuple[Mesh, tuple[Stream, Stream | None], HostState, list[str]]:
    """Check, before anything large is made, the mesh, the data and that they continue the tag."""
    found = inspect(cfg, tag)
    assert found.mesh is not None
    assert found.train is not None
    assert found.host is not None
    return found.mesh, (found.train, found.val), found.host, found.changes


def _check_sizes(cfg: TrainingConfig, state: TrainState, mesh: Mesh) -> None:
    check_tokens(cfg)
    check_state(state, mesh, room(mesh.local_devices))


def _initial_weights(cfg: TrainingConfig, shardings: Any) -> Any:
    """The weights that init_from names, laid out by `shardings`."""
    assert cfg.init_from is not None
    source = cfg.init_from
    return steadily(
        lambda: starting_weights(source, fetch=False),  # fetched when it was checked
        lambda files: load_weights(files.weights, cfg.model, shardings),
    )
