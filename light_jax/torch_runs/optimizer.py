"""Optimizer state: torch.optim's state dicts <-> the optax state of `light_jax.training.optimizer`.

In numpy; PyTorch itself gives only what its version adds to the moments.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conversion.mapping import idle_keys, table
from conversion.weights import from_torch, to_torch
from light_jax.config import TrainingConfig
from light_jax.sections import OptimizerConfig
from light_jax.torch_runs.file import require_muon, require_torch
from light_jax.torch_runs.parts import (
    COUNTING,
    MOMENTS,
    Part,
    group_problems,
    moment_problems,
    muon_settings,
    parts,
)
from light_llm.errors import UserError


def optimizer_from_torch(saved: Any, cfg: TrainingConfig, source: str | Path) -> Any:
    """The state of `make_optimizer(cfg.optimizer)` from the state of a run's torch optimizer.

    Args:
        saved: its state dict as `torch_file.read` gives it, of `parameter_groups`; for muon
            {"muon": state dict, "adamw": state dict}. The moments of a parameter without an entry
            are zeros.
        source: its name in messages.

    Raises:
        UserError: it does not fit this optimizer and this model; every problem on a line.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from light_jax.training.optimizer import make_optimizer
    from light_jax.training.step import weights_shapes

    stored: dict[str, dict[Any, Any]] = {}
    problems = [line for part in parts(cfg) for line in group_problems(part.of(saved), part, cfg)]
    if not problems:
        stored = {part.name: _by_key(part.of(saved), part) for part in parts(cfg)}
        problems = [
            line for part in parts(cfg) for line in moment_problems(stored[part.name], part)
        ]
    if problems:
        raise UserError(
            f"{source}: not the optimizer state of the run that the config.json beside it "
            "describes; put back the one that was saved with it:\n  " + "\n  ".join(problems)
        )
    params = weights_shapes(cfg.model)
    opt_state = jax.eval_shape(make_optimizer(cfg.optimizer).init, params)
    for part in parts(cfg):
        fields, values = stored[part.name], {}
        for ours, theirs in MOMENTS[part.kind].items():
            arrays = {entry.key: np.zeros(entry.shape, np.float32) for entry in table(cfg.model)}
            arrays |= {
                key: moments[theirs]
                for key, moments in fields.items()
                if moments.get(theirs) is not None
            }
            values[ours] = _masked_like(
                optax.tree.get(opt_state, ours), from_torch(arrays, cfg.model)
            )
        if part.kind in COUNTING:
            counts = {int(moments["step"]) for moments in fields.values()}
            values["count"] = jnp.int32(counts.pop() if counts else 0)
        opt_state = optax.tree.set(opt_state, **values)
    return opt_state


def optimizer_to_torch(opt_state: Any, cfg: TrainingConfig) -> dict[str, dict[int, Any]]:
    """The `state` of each torch optimizer, by `Part.name`: parameter's number -> its moments in
    PyTorch's layout.

    Where torch keeps nothing there is no entry: before the first update, for sgd without momentum,
    and for parameters that never have a gradient.
    """
    from light_jax.training.step import weights_shapes

    params = weights_shapes(cfg.model)
    return {part.name: _part_to_torch(opt_state, params, part, cfg) for part in parts(cfg)}


def _part_to_torch(opt_state: Any, params: Any, part: Part, cfg: TrainingConfig) -> dict[int, Any]:
    import optax

    count = optax.tree.get(opt_state, "count")  # for muon AdamW's, as many as its own
    if count == 0 or (count is None and cfg.optimizer.beta1 == 0):
        return {}
    moments = {
        theirs: to_torch(_unmasked(optax.tree.get(opt_state, ours), params), cfg.model)
        for ours, theirs in MOMENTS[part.kind].items()
    }
    idle = idle_keys(cfg.model)
    state: dict[int, dict[str, np.ndarray]] = {}
    for number, entry in enumerate(part.entries):
        if entry.key not in idle:
            # an array each: torch counts in place
            step = {"step": np.array(np.float32(count))} if part.kind in COUNTING else {}
            state[number] = step | {name: arrays[entry.key] for name, arrays in moments.items()}
    return state


def _masked_like(blank: Any, moments: Any) -> Any:
    """The moments of all parameters without those that another part keeps."""
    import jax
    import optax

    return jax.tree.map(
        lambda own, moment: own if isinstance(own, optax.MaskedNode) else moment,
        blank,
        moments,
        is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
    )


def _unmasked(moments: Any, params: Any) -> Any:
    """Zeros, which take no memory, for the parameters of another part."""
    import jax
    import optax

    return jax.tree.map(
        lambda moment, param: (
            np.broadcast_to(np.float32(0), param.shape)
            if isinstance(moment, optax.MaskedNode)
            else moment
        ),
        moments,
        params,
        is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
    )


def _by_key(state_dict: Mapping[str, Any], part: Part) -> dict[Any, Any]:
    """The entries by PyTorch key, or by number where no parameter has it."""
    key_of = {
        number: entry.key
        for group, entries in zip(state_dict["param_groups"], part.groups, strict=True)
        for number, entry in zip(group["params"], entries, strict=True)
    }
    return {key_of.get(number, number): fields for number, fields in state_dict["state"].items()}


def torch_schedule(cfg: TrainingConfig, step: int, rate: float) -> dict[str, tuple[Any, Any]]:
    """(param_groups, scheduler) of each part of a torch run before its update `step` (from 0).

    torch itself makes them, so that they have what its version needs.
    """
    return {part.name: _part_schedule(part, cfg.optimizer, step, rate) for part in parts(cfg)}


def _part_schedule(
    part: Part, cfg: OptimizerConfig, step: int, rate: float
) -> tuple[list[Any], dict[str, Any]]:
    torch = require_torch()
    groups = [
        {
            "params": [torch.nn.Parameter(torch.empty(0, 0)) for _ in entries],
            "weight_decay": cfg.weight_decay if number == 0 else 0.0,
        }
        for number, entries in enumerate(part.groups)
    ]
    betas = (cfg.beta1, cfg.beta2)
    optimizer = {
        "sgd": lambda: torch.optim.SGD(groups, lr=cfg.lr, momentum=cfg.beta1),
        "adam": lambda: torch.optim.Adam(groups, lr=cfg.lr, betas=betas, eps=cfg.eps),
        "adamw": lambda: torch.optim.AdamW(groups, lr=cfg.lr, betas=betas, eps=cfg.eps),
        "muon": lambda: require_muon()(groups, lr=cfg.lr, **muon_settings(cfg)),
    }[part.kind]()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    schedule = scheduler.state_dict() | {
        "last_epoch": step,
        "_step_count": step + 1,
        "_last_lr": [rate] * len(groups),
    }
    return optimizer.state_dict()["param_groups"], schedule
