"""Optimizer state: torch.optim's state dicts <-> the optax state of `light_jax.training.optimizer`.

In numpy; PyTorch itself gives only what its version adds to the moments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conversion.mapping import Entry, idle_keys, parameter_groups
from conversion.weights import from_torch, to_torch
from light_jax.config import OptimizerConfig, TrainingConfig
from light_jax.torch_runs.file import require_torch
from light_llm.errors import UserError

_ADAM = {"mu": "exp_avg", "nu": "exp_avg_sq"}
MOMENTS = {"adamw": _ADAM, "adam": _ADAM, "sgd": {"trace": "momentum_buffer"}}
"""optimizer.type -> what optax calls a moment: what torch.optim calls it."""

EXACT = ("float32", "float16")  # torch_file.read makes float32 of bfloat16


def optimizer_from_torch(state_dict: Any, cfg: TrainingConfig, source: str | Path) -> Any:
    """The state of `make_optimizer(cfg.optimizer)` from the state of a run's torch optimizer.

    Args:
        state_dict: as `torch_file.read` gives it, of `parameter_groups`; the moments of a
            parameter without an entry are zeros.
        source: its name in messages.

    Raises:
        UserError: it does not fit this optimizer and this model; every problem on a line.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from light_jax.training.optimizer import make_optimizer

    problems = list(_group_problems(state_dict, cfg))
    if not problems:
        stored = _by_key(state_dict, cfg)
        problems = list(_moment_problems(stored, cfg))
    if problems:
        raise UserError(
            f"{source}: not the optimizer state of the run that the config.json beside it "
            "describes; put back the one that was saved with it:\n  " + "\n  ".join(problems)
        )
    entries = _in_order(cfg)
    values: dict[str, Any] = {}
    for ours, theirs in MOMENTS[cfg.optimizer.type].items():
        arrays = {}
        for entry in entries:
            moment = stored.get(entry.key, {}).get(theirs)
            arrays[entry.key] = np.zeros(entry.shape, np.float32) if moment is None else moment
        values[ours] = from_torch(arrays, cfg.model)
    if cfg.optimizer.type != "sgd":
        counts = {int(fields["step"]) for fields in stored.values()}
        values["count"] = jnp.int32(counts.pop() if counts else 0)
    params = next(iter(values.values()))
    blank = jax.eval_shape(make_optimizer(cfg.optimizer).init, params)
    return optax.tree.set(blank, **values)


def optimizer_to_torch(opt_state: Any, cfg: TrainingConfig) -> dict[int, dict[str, np.ndarray]]:
    """The `state` of the torch optimizer: parameter's number -> its moments in PyTorch's layout.

    Where torch keeps nothing there is no entry: before the first update, for sgd without momentum,
    and for parameters that never have a gradient.
    """
    import optax

    count = None
    if cfg.optimizer.type != "sgd":
        count = np.float32(optax.tree.get(opt_state, "count"))
    if count == 0 or (count is None and cfg.optimizer.beta1 == 0):
        return {}
    moments = {
        theirs: to_torch(optax.tree.get(opt_state, ours), cfg.model)
        for ours, theirs in MOMENTS[cfg.optimizer.type].items()
    }
    idle = idle_keys(cfg.model)
    state: dict[int, dict[str, np.ndarray]] = {}
    for number, entry in enumerate(_in_order(cfg)):
        if entry.key not in idle:
            # an array each: torch counts in place
            step = {} if count is None else {"step": np.array(count)}
            state[number] = step | {name: arrays[entry.key] for name, arrays in moments.items()}
    return state


def _in_order(cfg: TrainingConfig) -> list[Entry]:
    """The parameters by number: those of the first group, then those of the second."""
    return [entry for group in parameter_groups(cfg.model) for entry in group]


def _group_problems(state_dict: Any, cfg: TrainingConfig) -> Iterator[str]:
    """Why the parameter groups are not those of the config."""
    shape_of = {"state": dict, "param_groups": list}
    if not isinstance(state_dict, dict) or any(
        not isinstance(state_dict.get(key), kind) for key, kind in shape_of.items()
    ):
        yield "optimizer is not a torch.optim state dict (state and param_groups)"
        return
    given, wanted = state_dict["param_groups"], parameter_groups(cfg.model)
    if len(given) != len(wanted) or not all(
        isinstance(group, dict) and isinstance(group.get("params"), list) for group in given
    ):
        yield (
            "optimizer must have 2 parameter groups, tensors of 2 and more dimensions and the "
            f"others, and has {len(given)}"
        )
        return
    numbers = [number for group in given for number in group["params"]]
    if not all(isinstance(number, int) for number in numbers) or len(set(numbers)) < len(numbers):
        yield "optimizer.param_groups must number each parameter once"
        return
    for number, (group, entries) in enumerate(zip(given, wanted, strict=True)):
        where = f"optimizer.param_groups[{number}]"
        if len(group["params"]) != len(entries):
            yield (
                f"{where} has {len(group['params'])} parameters, and the model of the config "
                f"{len(entries)}"
            )
        for name, value in _settings(cfg.optimizer, decays=number == 0).items():
            if name in group and not _equal(group[name], value):
                yield f"{where}.{name} is {group[name]!r}, and by the config {value!r}"
            elif name not in group and name not in OPTIONAL:
                yield f"{where} has no {name}: it is not from {cfg.optimizer.type}"


OPTIONAL = ("initial_lr", "decoupled_weight_decay")  # without a scheduler, before torch 2.7


def _settings(cfg: OptimizerConfig, decays: bool) -> dict[str, Any]:
    """What a parameter group must say for the update to be the same here."""
    common = {
        "weight_decay": cfg.weight_decay if decays else 0.0,
        "initial_lr": cfg.lr,
        "maximize": False,
    }
    if cfg.type == "sgd":
        return {**common, "momentum": cfg.beta1, "dampening": 0, "nesterov": False}
    return {
        **common,
        "betas": (cfg.beta1, cfg.beta2),
        "eps": cfg.eps,
        "amsgrad": False,
        "decoupled_weight_decay": cfg.type == "adamw",
    }


def _equal(a: Any, b: Any) -> bool:
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))  # (0.9, 0.95) is [0.9, 0.95]


def _by_key(state_dict: Mapping[str, Any], cfg: TrainingConfig) -> dict[str, Any]:
    """The entries by PyTorch key, or by number where no parameter has it."""
    key_of = {
        number: entry.key
        for group, entries in zip(
            state_dict["param_groups"], parameter_groups(cfg.model), strict=True
        )
        for number, entry in zip(group["params"], entries, strict=True)
    }
    return {key_of.get(number, number): fields for number, fields in state_dict["state"].items()}


def _moment_problems(stored: Mapping[Any, Any], cfg: TrainingConfig) -> Iterator[str]:
    """Why the entries are not the moments of the model's parameters after one number of updates."""
    shapes = {entry.key: entry.shape for entry in _in_order(cfg)}
    names = list(MOMENTS[cfg.optimizer.type].values())
    has_step = cfg.optimizer.type != "sgd"
    counts = {}
    for key, fields in stored.items():
        if key not in shapes:
            yield f"optimizer.state[{key!r}] belongs to no parameter of the groups"
        elif not isinstance(fields, dict) or set(fields) != {*names, *(["step"] * has_step)}:
            found = ", ".join(map(str, fields)) if isinstance(fields, dict) else repr(fields)
            yield f"{key}: holds {found}, where {cfg.optimizer.type} keeps {', '.join(names)}"
        else:
            for name in names:
                yield from _moment_problem(f"{key}: {name}", fields[name], shapes[key], has_step)
            if has_step:
                counts[key] = whole_number(fields["step"])
    if None in counts.values():
        yield "optimizer.state has a step that is not a whole number"
    elif len(key_with := {count: key for key, count in counts.items()}) > 1:
        counted = ", ".join(f"{count} ({key})" for count, key in key_with.items())
        yield f"parameters have different update counts, {counted}; they must be equal"


def _moment_problem(what: str, value: Any, shape: tuple[int, ...], required: bool) -> Iterator[str]:
    if value is None and not required:
        return  # sgd's buffer before its first gradient
    if not isinstance(value, np.ndarray):
        yield f"{what} is not a tensor"
    elif value.shape != shape:
        yield f"{what} has shape {list(value.shape)}, the config says {list(shape)}"
    elif str(value.dtype) not in EXACT:
        yield f"{what} is {value.dtype}, which float32 does not hold exactly"


def whole_number(value: Any) -> int | None:
    """A count of updates, which torch keeps as a number or a tensor; None if it is not one."""
    is_scalar = isinstance(value, np.ndarray) and value.shape == () and value.dtype.kind in "iuf"
    number = value.item() if is_scalar else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        return None
    return int(number) if 0 <= number < 2**31 and number == int(number) else None


def torch_schedule(cfg: TrainingConfig, step: int, rate: float) -> tuple[list[Any], dict[str, Any]]:
    """(param_groups, scheduler) of a torch run before its update `step` (from 0) with that rate.

    torch itself makes them, so that they have what its version needs.
    """
    torch = require_torch()
    optimizer_cfg = cfg.optimizer
    groups = [
        {
            "params": [torch.nn.Parameter(torch.empty(0)) for _ in entries],
            "weight_decay": optimizer_cfg.weight_decay if number == 0 else 0.0,
        }
        for number, entries in enumerate(parameter_groups(cfg.model))
    ]
    if optimizer_cfg.type == "sgd":
        optimizer = torch.optim.SGD(groups, lr=optimizer_cfg.lr, momentum=optimizer_cfg.beta1)
    else:
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[optimizer_cfg.type]
        betas = (optimizer_cfg.beta1, optimizer_cfg.beta2)
        optimizer = kind(groups, lr=optimizer_cfg.lr, betas=betas, eps=optimizer_cfg.eps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    schedule = scheduler.state_dict() | {
        "last_epoch": step,
        "_step_count": step + 1,
        "_last_lr": [rate] * len(groups),
    }
    return optimizer.state_dict()["param_groups"], schedule
