"""A tag of the PyTorch trainer -> a tag of this one, and back, in its folder.

Weights and config.json have the same form on both sides; DIR/TAG.state.pt becomes DIR/TAG.state/.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import uuid
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from light_jax.checkpoint import protocol, store
from light_jax.checkpoint.host_state import load_host_state
from light_jax.checkpoint.ownership import STEP_TAG
from light_jax.checkpoint.saver import disk_faults
from light_jax.checkpoint.state import load_arrays, not_for_orbax, save_state, with_arrays
from light_jax.checkpoint.weights import load_weights, save_weights
from light_jax.checkpoint.writing import write_config
from light_jax.config import TrainingConfig, load_config
from light_jax.data import TokenStream
from light_jax.sources import is_mixture, paths_of
from light_jax.state import HostState, Tag, TrainState
from light_jax.torch_runs import file as torch_file
from light_jax.torch_runs import tag as torch_tag
from light_jax.training.step import state_shapes
from light_llm.checkpoint import digests, layout, reading
from light_llm.checkpoint.parts import AVERAGE, is_average, is_weights
from light_llm.errors import UserError
from light_llm.files import disk


def import_tag(prefix: str | Path) -> list[str]:
    """Make DIR/TAG.{safetensors,state.pt,config.json} a tag of this trainer, in its place.

    Weights are rewritten as float32 with every key, config.json with every setting; the .state.pt
    stays. The shards of train_data must be there, since the tag records their fingerprint.

    Returns:
        The lines to print.

    Raises:
        UserError: a member is missing, damaged or does not fit the others. Nothing was changed.
    """
    found = reading.read_checkpoint(prefix)
    files, cfg = found.files, load_config(found.files.config)
    if not files.torch_state.is_file():
        raise UserError(
            f"{files.torch_state}: there is no optimizer state of a PyTorch trainer; copy it "
            "there, or start from the weights alone with init_from"
        )
    _check_name(files.prefix)
    _check_links(files)
    check_no_mixture(cfg, files.config)
    stream = TokenStream(
        paths_of(cfg.train_data),
        seq_len=cfg.seq_len,
        seed=cfg.seed,
        vocab_size=cfg.model.vocab_size,
    )
    data = torch_file.read(files.torch_state)
    state, best, notes = torch_tag.state_from_torch(data, cfg, len(stream), files.torch_state)
    _check_step(found, int(state.step))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, _abstract(cfg).weights)
    weights = load_weights(files.weights, cfg.model, shardings)
    average, lost = _average(found, cfg, shardings)
    state = dataclasses.replace(state, average=average)
    with _disk_faults(files.prefix), protocol.one_writer(files.directory) as lock:
        host = HostState("", stream.fingerprint, best)
        host, generation = _place(found, cfg, host)
        record = reading.Record(run=host.run, generation=generation, step=int(state.step))
        _commit(files, cfg, record, weights, state, host, lock)
    return [
        f"{files.prefix}: step {record.step} of a PyTorch run can be resumed now",
        *notes,
        *lost,
    ]


def _average(
    found: reading.Checkpoint, cfg: TrainingConfig, shardings: Any
) -> tuple[Any | None, list[str]]:
    """(the average of the weights that is beside them, or None; the lines to print).

    It belongs to them where config.json still records both, so that PyTorch wrote neither.
    """
    if cfg.ema_decay is None:
        return None, []
    record, files = found.record, found.files
    if record is None or not record.files or files.average is None:
        return None, [
            "note: there is no average of the weights (ema_decay), which a PyTorch run does not "
            "keep; a resume starts it from these weights"
        ]
    digests.verify(found, lambda name: is_weights(name) or is_average(name))
    return load_weights(files.average.weights, cfg.model, shardings), []


def check_no_mixture(cfg: TrainingConfig, config: Path) -> None:
    """
    Raises:
        UserError: the run reads what the PyTorch trainer cannot.
    """
    for key, data in (("train_data", cfg.train_data), ("val_data", cfg.val_data)):
        if data is not None and is_mixture(data):
            names = ", ".join(source.label for source in data)
            raise UserError(
                f"{config}: {key} mixes the sources {names}, and the PyTorch trainer reads one "
                "sequence of shards alone, so the run cannot go on there as it is; take its "
                "weights there, which need no conversion"
            )


def _commit(
    files: layout.Files,
    cfg: TrainingConfig,
    record: reading.Record,
    weights: nnx.State,
    state: TrainState,
    host: HostState,
    lock: disk.Lock,
) -> None:
    """Put the tag in its place, whole, or leave what is there; the directory is locked."""
    directory, tag = files.directory, files.tag
    protocol.check_lock(directory, lock)
    staging = protocol.start(directory, tag, host.run)
    try:
        save_weights(staging, tag, weights, cfg.model, cfg.max_shard_bytes)
        if state.average is not None:
            name = f"{tag}{AVERAGE}"
            save_weights(staging, name, state.average, cfg.model, cfg.max_shard_bytes)
        save_state(staging / f"{tag}{layout.STATE}", state, host)
        write_config(staging, tag, cfg, record)
        protocol.check_lock(directory, lock)
        protocol.commit(directory, tag, host.run, replacing=True)
    except BaseException:
        _discard(staging)
        raise


def export_tag(prefix: str | Path) -> list[str]:
    """Write DIR/TAG.state.pt beside a tag of this trainer, for the PyTorch trainer to resume from.

    Returns:
        The lines to print.

    Raises:
        UserError: no such tag, damaged files, or it cannot be written. The tag is left as it is.
    """
    _check_name(store.read_tag(prefix).prefix)
    tag, cfg, state, host = reading.steadily(lambda: store.read_tag(prefix), _verified)
    check_no_mixture(cfg, tag.checkpoint.files.config)
    tokens = sum(shard["tokens"] for shard in host.fingerprint)
    data = torch_tag.state_to_torch(state, cfg, (tokens - 1) // cfg.seq_len, host.best_val_loss)
    path = tag.checkpoint.files.torch_state
    with _disk_faults(path), disk.replacing(path) as temporary:
        torch_file.write(temporary, data)
    lines = [f"{path}: the optimizer state after step {tag.step}, for PyTorch"]
    if (average := tag.checkpoint.files.average) is not None:
        lines.append(
            f"note: the average of the weights (ema_decay) stays in {average.weights}; a PyTorch "
            "run does not go on with it"
        )
    return lines


def _verified(tag: Tag) -> tuple[Tag, TrainingConfig, TrainState, HostState]:
    """The tag, and what its verified files hold; the state without weights."""
    digests.verify(tag.checkpoint)
    files = tag.checkpoint.files
    cfg = load_config(files.config)
    host = load_host_state(files.state)
    abstract = _abstract(cfg)
    return tag, cfg, with_arrays(abstract, load_arrays(files.state, abstract)), host


def _abstract(cfg: TrainingConfig) -> TrainState:
    """The shapes of a run's state, on one device."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        state_shapes(cfg),
    )


def _disk_faults(path: Path) -> AbstractContextManager[None]:
    return disk_faults(path, "cannot be written", "convert again")


def _discard(staging: Path) -> None:
    """Remove what a failure left (nothing, once it is committed).

    The threads of orbax may still be writing there; what remains, the next start removes.
    """
    for _ in range(20):
        with contextlib.suppress(OSError):
            protocol.discard(staging)
        if not staging.exists():
            return
        time.sleep(0.05)


def _check_name(prefix: Path) -> None:
    if (reason := not_for_orbax(prefix)) is not None:
        raise UserError(
            f"{prefix}: {reason}, so no checkpoint can be written there; use another name"
        )


def _check_links(files: layout.Files) -> None:
    """Refuse links where folders are made and deleted."""
    directory, tag = files.directory, files.tag
    places = [
        directory / f"{tag}{layout.STATE}",
        protocol.writing_dir(directory, tag),
        layout.committed_dir(directory, tag),
        directory / ".lock",
    ]
    for place in places:
        if place.is_symlink():
            raise UserError(f"{place}: is a link to {os.readlink(place)}; put the real one there")


def _check_step(found: reading.Checkpoint, step: int) -> None:
    """Compare the step of the state with that of the tag's name and of its config.json."""
    path, tag, record = found.files.torch_state, found.files.tag, found.record
    named = STEP_TAG.fullmatch(tag)
    if named and int(named[1]) != step:
        raise UserError(f"{path}: belongs to step {step}; put back the one of {tag}")
    if record is None:
        return
    try:
        digests.verify(found, is_weights)
    except UserError as error:
        raise UserError(
            f"{error}\n(if PyTorch wrote these weights after {layout.CONFIG}, take the key "
            f"'checkpoint' out of that file, and convert again)"
        ) from None
    if record.step != step:
        raise UserError(
            f"{path}: belongs to step {step}, and the weights beside it to step {record.step}; "
            "put three files of the same step together"
        )


def _place(
    found: reading.Checkpoint, cfg: TrainingConfig, host: HostState
) -> tuple[HostState, int]:
    """(`host` with the id of the run in that directory, or a new id; the tag's generation).

    Raises:
        UserError: the run there is another one.
    """
    directory = found.files.directory
    own = store.own_tags(directory)
    if not own:
        return dataclasses.replace(host, run=uuid.uuid4().hex), 1
    newest = max(own, key=lambda tag: tag.order)
    there, _, refused = store.compare(newest, cfg, host.fingerprint)
    if refused:
        raise UserError(
            f"{found.files.prefix}: another run wrote {newest.prefix.name} in this folder; "
            "move one of the two runs to another folder:\n  " + "\n  ".join(refused)
        )
    host = dataclasses.replace(host, run=newest.run, wandb_run_id=there.wandb_run_id)
    return host, store.starts(directory) if found.record is None else found.record.generation
