"""The optimizers of a run in PyTorch, and whether saved state is theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from conversion.mapping import Entry, parameter_groups
from light_jax.config import TrainingConfig
from light_jax.sections import OptimizerConfig
from light_jax.training.muon import ITERATIONS

_ADAM = {"mu": "exp_avg", "nu": "exp_avg_sq"}
MOMENTS = {
    "adamw": _ADAM,
    "adam": _ADAM,
    "sgd": {"trace": "momentum_buffer"},
    "muon": {"momentum": "momentum_buffer"},
}
"""A kind of optimizer -> what optax calls a moment: what torch.optim calls it."""
COUNTING = ("adamw", "adam")
"""The kinds that count their updates."""


class Part(NamedTuple):
    """One optimizer of torch.optim and its parameter groups, of which the first decays."""

    name: str  # in the saved dict; empty where it is the only one
    kind: str
    groups: tuple[list[Entry], ...]

    @property
    def entries(self) -> list[Entry]:
        """The parameters by number."""
        return [entry for group in self.groups for entry in group]

    @property
    def where(self) -> str:
        return f"optimizer.{self.name}" if self.name else "optimizer"

    def of(self, saved: Any) -> Any:
        """This part's state dict."""
        if not self.name:
            return saved
        return saved.get(self.name) if isinstance(saved, dict) else None


def parts(cfg: TrainingConfig) -> list[Part]:
    """The optimizers of a run in PyTorch: one, and for muon AdamW beside torch.optim.Muon."""
    matrices, vectors = parameter_groups(cfg.model)
    if cfg.optimizer.type != "muon":
        return [Part("", cfg.optimizer.type, (matrices, vectors))]
    hidden = [entry for entry in matrices if entry.path[0] == "layers"]
    rest = [entry for entry in matrices if entry.path[0] != "layers"]
    return [Part("muon", "muon", (hidden,)), Part("adamw", "adamw", (rest, vectors))]


EXACT = ("float32", "float16")  # torch_file.read makes float32 of bfloat16


def group_problems(state_dict: Any, part: Part, cfg: TrainingConfig) -> Iterator[str]:
    """Why the parameter groups are not those of the config."""
    shape_of = {"state": dict, "param_groups": list}
    if not isinstance(state_dict, dict) or any(
        not isinstance(state_dict.get(key), kind) for key, kind in shape_of.items()
    ):
        yield f"{part.where} is not a torch.optim state dict (state and param_groups)"
        return
    given = state_dict["param_groups"]
    if len(given) != len(part.groups) or not all(
        isinstance(group, dict) and isinstance(group.get("params"), list) for group in given
    ):
        yield f"{part.where} must have {GROUPS[len(part.groups)]}, and has {len(given)}"
        return
    numbers = [number for group in given for number in group["params"]]
    if not all(isinstance(number, int) for number in numbers) or len(set(numbers)) < len(numbers):
        yield f"{part.where}.param_groups must number each parameter once"
        return
    for number, (group, entries) in enumerate(zip(given, part.groups, strict=True)):
        where = f"{part.where}.param_groups[{number}]"
        if len(group["params"]) != len(entries):
            yield (
                f"{where} has {len(group['params'])} parameters, and the model of the config "
                f"{len(entries)}"
            )
        for name, value in _settings(cfg.optimizer, part.kind, decays=number == 0).items():
            if name in group and not _equal(group[name], value):
                yield f"{where}.{name} is {group[name]!r}, and by the config {value!r}"
            elif name not in group and name not in OPTIONAL:
                yield f"{where} has no {name}: it is not from {part.kind}"


GROUPS = {
    1: "1 parameter group",
    2: "2 parameter groups, tensors of 2 and more dimensions and the others",
}
OPTIONAL = ("initial_lr", "decoupled_weight_decay")  # without a scheduler, before torch 2.7


def _settings(cfg: OptimizerConfig, kind: str, decays: bool) -> dict[str, Any]:
    """What a parameter group must say for the update to be the same here."""
    common = {
        "weight_decay": cfg.weight_decay if decays else 0.0,
        "initial_lr": cfg.lr,
        "maximize": False,
    }
    if kind == "sgd":
        return {**common, "momentum": cfg.beta1, "dampening": 0, "nesterov": False}
    if kind == "muon":
        del common["maximize"]
        return {**common, **muon_settings(cfg)}
    return {
        **common,
        "betas": (cfg.beta1, cfg.beta2),
        "eps": cfg.eps,
        "amsgrad": False,
        "decoupled_weight_decay": kind == "adamw",
    }


def muon_settings(cfg: OptimizerConfig) -> dict[str, Any]:
    return {
        "momentum": cfg.muon_momentum,
        "nesterov": True,
        "ns_steps": ITERATIONS,
        "adjust_lr_fn": "match_rms_adamw",
    }


def _equal(a: Any, b: Any) -> bool:
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))  # (0.9, 0.95) is [0.9, 0.95]


def moment_problems(stored: Mapping[Any, Any], part: Part) -> Iterator[str]:
    """Why the entries are not the moments of the part's parameters after one number of updates."""
    shapes = {entry.key: entry.shape for entry in part.entries}
    names = list(MOMENTS[part.kind].values())
    has_step = part.kind in COUNTING
    counts = {}
    for key, fields in stored.items():
        if key not in shapes:
            yield f"{part.where}.state[{key!r}] belongs to no parameter of the groups"
        elif not isinstance(fields, dict) or set(fields) != {*names, *(["step"] * has_step)}:
            found = ", ".join(map(str, fields)) if isinstance(fields, dict) else repr(fields)
            yield f"{key}: holds {found}, where {part.kind} keeps {', '.join(names)}"
        else:
            for name in names:
                yield from _moment_problem(f"{key}: {name}", fields[name], shapes[key], has_step)
            if has_step:
                counts[key] = whole_number(fields["step"])
    if None in counts.values():
        yield f"{part.where}.state has a step that is not a whole number"
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
