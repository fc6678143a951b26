"""Optimizers with PyTorch's semantics, and the learning rate as a function of the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from light_jax.config import TrainingConfig
from light_jax.parallel.sharding import path_names
from light_jax.sections import OptimizerConfig
from light_jax.training.muon import scale_by_muon


def make_optimizer(
    cfg: OptimizerConfig, stored: Callable[[Any], Any] | None = None
) -> optax.GradientTransformation:
    """Clipped gradients -> a direction; the step then subtracts lr times it.

    adamw and muon decay the weights apart from the gradient (Loshchilov & Hutter 2019); adam and
    sgd add the decay to the gradient, as torch.optim does. Only tensors of two or more dimensions
    decay. With muon the matrices inside layers are Muon's, and all else is AdamW's.

    Args:
        stored: the sharding of each leaf of a tree of gradients, where they are cut over devices.
    """
    decay = optax.add_decayed_weights(cfg.weight_decay, mask=_matrices)
    if cfg.type == "sgd":
        return optax.chain(decay, optax.trace(cfg.beta1))
    adam = optax.scale_by_adam(cfg.beta1, cfg.beta2, cfg.eps)
    if cfg.type == "muon":
        muon = scale_by_muon(cfg.muon_momentum, cfg.muon_dtype, stored)
        return optax.chain(optax.partition({"muon": muon, "adamw": adam}, _owners), decay)
    return optax.chain(adam, decay) if cfg.type == "adamw" else optax.chain(decay, adam)


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim >= 2, params)


def _owners(params: Any) -> Any:
    """`muon` or `adamw` for each parameter (torch.optim.Muon is for hidden layers' matrices)."""

    def owner(path: tuple[Any, ...], param: jax.Array) -> str:
        return "muon" if param.ndim == 2 and path_names(path)[0] == "layers" else "adamw"

    return jax.tree_util.tree_map_with_path(owner, params)


def clip_scale(norm: jax.Array, max_norm: float) -> jax.Array:
    """torch.nn.utils.clip_grad_norm_'s factor for gradients of global norm `norm`; 0 is off."""
    if max_norm == 0.0:
        return jnp.ones_like(norm)
    return jnp.minimum(1.0, max_norm / (norm + 1e-6))


def learning_rate(cfg: TrainingConfig, step: int) -> float:
    """Rate of the update of step n (from 0), in float64 on the host."""
    return cfg.optimizer.lr * _rate_factor(cfg, step)


def _rate_factor(cfg: TrainingConfig, step: int) -> float:
    warmup, floor = cfg.scheduler.warmup_steps, cfg.scheduler.min_lr_ratio
    if step < warmup:
        return step / max(1, warmup)
    start = 9 * cfg.num_steps // 10 if cfg.scheduler.type == "wsd" else warmup
    if step < start:
        return 1.0
    progress = min(1.0, (step - start) / max(1, cfg.num_steps - start))
    return DECAY[cfg.scheduler.type](progress, floor)


def _cosine(progress: float, floor: float) -> float:
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _linear(progress: float, floor: float) -> float:
    return max(floor, 1.0 - (1.0 - floor) * progress)


DECAY: dict[str, Callable[[float, float], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": lambda progress, floor: 1.0,
    "wsd": _cosine,
}
"""scheduler.type -> the factor at `progress`, from 0 (the flat part ends) to 1."""
