"""A tag of the PyTorch trainer -> a tag of this one, and back, optimizer and all.

DIR/TAG.state.pt is the dict {step, epoch, optimizer, scheduler, scaler, best_val_loss}; weights and
config.json are of the same form on both sides.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from safetensors import SafetensorError

from conversion import torch_file
from conversion.optimizer import (
    optimizer_from_torch,
    optimizer_to_torch,
    torch_schedule,
    whole_number,
)
from light_jax.checkpoint import files, store
from light_jax.checkpoint.state import (
    HostState,
    load_arrays,
    load_host_state,
    save_state,
    with_arrays,
)
from light_jax.checkpoint.weights import load_weights, save_weights
from light_jax.config import TrainingConfig, load_config
from light_jax.data import TokenStream
from light_jax.data.index import Fingerprint, describe_change
from light_jax.optimizer import learning_rate
from light_jax.step import (
    LOSS_SCALE_GROWTH_INTERVAL,
    LossScale,
    TrainState,
    init_params,
    init_state,
)
from light_llm import checkpoint as layout
from light_llm.errors import UserError

KEYS = ("step", "epoch", "optimizer", "scheduler", "scaler", "best_val_loss")


def import_tag(prefix: str | Path) -> list[str]:
    """Make DIR/TAG.{safetensors,state.pt,config.json} a tag of this trainer, in its place.

    Weights are written anew as float32 with every key, config.json with every setting; the
    .state.pt stays. The shards of train_data must be there, for the tag to know them again.

    Returns:
        What to tell the user, line by line.

    Raises:
        UserError: a member is missing, damaged or does not fit the others. Nothing was changed.
    """
    directory, tag = layout.split_prefix(prefix)
    layout.weights_file(prefix)  # that it is there
    record = layout.read_record(prefix)
    cfg = load_config(layout.member(prefix, layout.CONFIG))
    path = directory / f"{tag}{layout.TORCH_STATE}"
    if not path.is_file():
        raise UserError(
            f"{path}: there is no optimizer state of a PyTorch trainer; copy it there, or start "
            "from the weights alone with init_from"
        )
    _check_name(directory / tag)
    foreign = _read_foreign(path)
    step = foreign["step"]
    _check_step(directory / tag, step, record)
    stream = TokenStream(
        cfg.train_data, seq_len=cfg.seq_len, seed=cfg.seed, vocab_size=cfg.model.vocab_size
    )
    _check_epoch(path, foreign, cfg, len(stream))
    state = dataclasses.replace(
        init_state(cfg, {}),
        step=jnp.int32(step),
        opt_state=optimizer_from_torch(foreign["optimizer"], cfg, path),
        loss_scale=_loss_scale(foreign["scaler"], cfg, path),
    )
    _check_count(path, state)
    abstract = _abstract(cfg)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.weights)
    weights = load_weights(layout.member(prefix, layout.WEIGHTS), cfg.model, shardings)
    with _writing(directory / tag), files.locked(directory):
        best = foreign["best_val_loss"]
        host = HostState("", stream.fingerprint, None if math.isinf(best) else best)
        host, generation = _place(directory / tag, cfg, record, host)
        staging = files.start(directory, tag)
        try:
            save_weights(staging / f"{tag}{layout.WEIGHTS}", weights, cfg.model)
            save_state(staging / f"{tag}{layout.STATE}", state, host)
            store.write_config(staging, tag, cfg, host.run, generation, step)
            files.commit(directory, tag)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)  # gone, once it is committed
            raise
    return [
        f"{directory / tag}: step {step} of a PyTorch run can be resumed now",
        *_rate_note(foreign["optimizer"], cfg, step),
    ]


def export_tag(prefix: str | Path) -> list[str]:
    """Write DIR/TAG.state.pt beside a tag of this trainer, for the PyTorch trainer to resume from.

    Returns:
        What to tell the user, line by line.

    Raises:
        UserError: no such tag, damaged files, or it cannot be written. The tag is left as it is.
    """
    tag = store.read_tag(prefix)
    _check_name(tag.prefix)
    layout.verify(tag.prefix)
    cfg = load_config(layout.member(tag.prefix, layout.CONFIG))
    folder = layout.member(tag.prefix, layout.STATE)
    host = load_host_state(folder)
    abstract = _abstract(cfg)
    state = with_arrays(abstract, load_arrays(folder, abstract))
    step = int(state.step)
    groups, scheduler = torch_schedule(cfg, step, learning_rate(cfg, step))
    best = math.inf if host.best_val_loss is None else host.best_val_loss
    data = {
        "step": step,
        "epoch": _windows_before(cfg, step) // _windows_per_epoch(host.fingerprint, cfg.seq_len),
        "optimizer": {
            "state": optimizer_to_torch(state.opt_state, cfg),
            "param_groups": groups,
        },
        "scheduler": scheduler,
        "scaler": _scaler(state.loss_scale),
        "best_val_loss": best,
    }
    path = tag.prefix.with_name(f"{tag.prefix.name}{layout.TORCH_STATE}")
    temporary = path.with_name(f".{path.name}.tmp")
    with _writing(path):
        try:
            temporary.unlink(missing_ok=True)  # a link there would lead elsewhere
            torch_file.write(temporary, data)
            files.sync(temporary)
            os.replace(temporary, path)
            files.sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return [f"{path}: the optimizer state after step {step}, for PyTorch"]


def _abstract(cfg: TrainingConfig) -> TrainState:
    """The shapes of a run's state, on one device."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        jax.eval_shape(lambda: init_state(cfg, init_params(cfg))),
    )


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        # a full disk is one of the first two, torch.save's RuntimeError or tensorstore's ValueError
        reason = " ".join(str(error).split())[-200:]
        raise UserError(
            f"{path}: cannot be written ({reason}); make room or mend the disk, and convert again"
        ) from None


def _check_name(prefix: Path) -> None:
    """Refuse what would be written, or read, elsewhere than it says."""
    if set("[]*?") & set(str(prefix.absolute())):  # orbax takes them for patterns
        raise UserError(
            f"{prefix}: {prefix.absolute()} has one of [ ] * ? in it, which checkpoints cannot be "
            "written under; use another name"
        )
    directory, tag = prefix.parent, prefix.name
    places = [
        directory / f"{tag}{layout.STATE}",
        files.writing_dir(directory, tag),
        layout.committed_dir(directory, tag),
        directory / ".lock",
    ]
    for place in places:
        if place.is_symlink():
            raise UserError(f"{place}: is a link to {os.readlink(place)}; put the real one there")


def _read_foreign(path: Path) -> dict[str, Any]:
    data = torch_file.read(path)
    if missing := [key for key in KEYS if key not in data]:
        raise UserError(
            f"{path}: has no {', '.join(missing)}; a PyTorch trainer's state has {', '.join(KEYS)}"
        )
    problems = []
    for key in ("step", "epoch"):
        number = whole_number(data[key])
        if number is None:
            problems.append(f"{key}={data[key]!r} is no whole number")
        data[key] = number
    best = data["best_val_loss"]
    if not isinstance(best, int | float) or math.isnan(best) or best == -math.inf:
        problems.append(f"best_val_loss={best!r} is no loss")
    if not isinstance(data["scaler"], dict):
        problems.append(f"scaler={data['scaler']!r} is no state of a GradScaler")
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}; use the file that the trainer wrote")
    return data


def _check_step(prefix: Path, step: int, record: layout.Record | None) -> None:
    """Compare the step of the state with what else names one."""
    path = f"{prefix}{layout.TORCH_STATE}"
    named = files.STEP_TAG.fullmatch(prefix.name)
    if named and int(named[1]) != step:
        raise UserError(f"{path}: is of step {step}; put back the one of {prefix.name}")
    if record is None:
        return
    try:
        layout.verify(prefix, lambda name: name == layout.WEIGHTS)
    except UserError as error:
        raise UserError(
            f"{error}\n(if PyTorch wrote these weights after {layout.CONFIG}, take the key "
            f"'checkpoint' out of that file, and convert again)"
        ) from None
    if record.step != step:
        raise UserError(
            f"{path}: is of step {step}, and the weights beside it are of step {record.step}; "
            "put the three files of one step together"
        )


def _check_epoch(path: Path, foreign: dict[str, Any], cfg: TrainingConfig, windows: int) -> None:
    """An epoch that the stream does not reach by then, or has left, tells of other shards."""
    read = _windows_before(cfg, foreign["step"])
    epochs = {max(0, read - 1) // windows, read // windows}  # at the seam, either
    if foreign["epoch"] not in epochs:
        raise UserError(
            f"{path}: step {foreign['step']} was in epoch {foreign['epoch']}, and with the shards "
            f"of train_data={cfg.train_data!r}, {windows} windows an epoch, it is in epoch "
            f"{max(epochs)}; name the shards that it was trained on in its {layout.CONFIG}"
        )


def _check_count(path: Path, state: TrainState) -> None:
    import optax

    count = optax.tree.get(state.opt_state, "count")
    if count is not None and int(count) > int(state.step):
        raise UserError(
            f"{path}: the optimizer made {int(count)} updates by step {int(state.step)}; "
            "the two are of different saves"
        )


def _windows_before(cfg: TrainingConfig, step: int) -> int:
    return step * cfg.gradient_accumulation_steps * cfg.batch_size


def _windows_per_epoch(fingerprint: Fingerprint, seq_len: int) -> int:
    return (sum(shard["tokens"] for shard in fingerprint) - 1) // seq_len


def _place(
    prefix: Path, cfg: TrainingConfig, record: layout.Record | None, host: HostState
) -> tuple[HostState, int]:
    """`host` as a tag of the run in that directory, if there is one, and the tag's generation.

    Raises:
        UserError: that is another run.
    """
    own = store.own_tags(prefix.parent)
    if not own:
        return dataclasses.replace(host, run=uuid.uuid4().hex), 1
    newest = max(own, key=lambda tag: tag.order)
    there = load_host_state(layout.member(newest.prefix, layout.STATE))
    changed = store.changed_settings(newest, cfg)
    refused = [line for key, line in changed if store.must_match(key)]
    if shards := describe_change(there.fingerprint, host.fingerprint):
        refused.append(f"train_data: {shards}")
    if refused:
        raise UserError(
            f"{prefix}: the folder holds another run, that of {newest.prefix.name}; move the files "
            "of one of them to a folder of its own:\n  " + "\n  ".join(refused)
        )
    host = dataclasses.replace(host, run=newest.run, wandb_run_id=there.wandb_run_id)
    return host, store.starts(prefix.parent) if record is None else record.generation


def _rate_note(optimizer: dict[str, Any], cfg: TrainingConfig, step: int) -> list[str]:
    stored, rate = optimizer["param_groups"][0].get("lr"), learning_rate(cfg, step)
    if stored is None or math.isclose(float(stored), rate, rel_tol=1e-6, abs_tol=1e-12):
        return []
    return [
        f"note: the next update had the learning rate {float(stored):.6g} in PyTorch; by the "
        f"schedule of the config it has {rate:.6g}"
    ]


def _loss_scale(scaler: dict[str, Any], cfg: TrainingConfig, path: Path) -> LossScale | None:
    """GradScaler's state as ours; skips in a row, which it does not count, start from 0."""
    if cfg.dtype != "float16":
        if scaler:
            raise UserError(f"{path}: scaler has a loss scale, and dtype={cfg.dtype!r} takes none")
        return None
    fixed = _scaler_settings()
    scale, finite = scaler.get("scale"), whole_number(scaler.get("_growth_tracker"))
    if not isinstance(scale, int | float) or not 0 < scale < math.inf or finite is None:
        raise UserError(
            f"{path}: scaler={scaler!r} has no scale and growth tracker, which dtype='float16' "
            "needs; start from the weights with init_from"
        )
    for name, value in fixed.items():
        if scaler.get(name, value) != value:
            raise UserError(f"{path}: scaler.{name} is {scaler[name]!r}; it is {value!r} here")
    return LossScale(jnp.float32(scale), jnp.int32(finite), jnp.int32(0))


def _scaler(loss_scale: LossScale | None) -> dict[str, Any]:
    """The state dict of torch.amp.GradScaler, which is empty where there is no loss scale."""
    if loss_scale is None:
        return {}
    return {
        "scale": float(loss_scale.scale),
        **_scaler_settings(),
        "_growth_tracker": int(loss_scale.finite_steps),
    }


def _scaler_settings() -> dict[str, Any]:
    return {
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": LOSS_SCALE_GROWTH_INTERVAL,
    }
