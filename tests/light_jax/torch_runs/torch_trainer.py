"""The other side of the bridge: a plain torch.optim loop, and the tags that it saves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_runs import TINY, merged
from torch.nn.functional import cross_entropy

from light_jax.config import TrainingConfig
from light_jax.data import TokenStream
from light_llm.models.transformer.model import Transformer

torch.set_num_threads(1)  # threads only slow models as small as these


class TorchRun:
    """A run of light-llm in PyTorch, of which the config is that of `llm-train`."""

    def __init__(self, cfg: TrainingConfig, model: Transformer) -> None:
        self.cfg, self.model, self.step = cfg, model.train(), 0
        self.optimizers = _optimizers(cfg, model)
        self.schedulers = {
            name: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: self._factor(n))
            for name, optimizer in self.optimizers.items()
        }
        self.scaler = torch.amp.GradScaler("cpu", enabled=cfg.dtype == "float16")
        self.stream = TokenStream(
            cfg.train_data, seq_len=cfg.seq_len, seed=cfg.seed, window_order=cfg.window_order
        )

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The only one, or AdamW beside Muon."""
        return list(self.optimizers.values())[-1]

    def _factor(self, step: int) -> float:
        """Warmup, then the cosine down to min_lr_ratio."""
        warmup, floor = self.cfg.scheduler.warmup_steps, self.cfg.scheduler.min_lr_ratio
        if step < warmup:
            return step / max(1, warmup)
        progress = min(1.0, (step - warmup) / max(1, self.cfg.num_steps - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what a .state.pt holds (the model has its weights already)."""
        self.step = state["step"]
        for name, optimizer in self.optimizers.items():
            saved = {key: state[key] for key in ("optimizer", "scheduler")}
            saved = {key: value[name] if name else value for key, value in saved.items()}
            optimizer.load_state_dict(saved["optimizer"])
            self.schedulers[name].load_state_dict(saved["scheduler"])
        self.scaler.load_state_dict(state["scaler"])

    def train_to(self, last: int) -> list[float]:
        """Train until `last` updates are made; the loss of each step."""
        cfg, losses = self.cfg, []
        for step in range(self.step, last):
            self.model.zero_grad()
            loss_sum = 0.0
            for a in range(cfg.gradient_accumulation_steps):
                first = (step * cfg.gradient_accumulation_steps + a) * cfg.batch_size
                tokens = self.stream.windows(range(first, first + cfg.batch_size))
                tokens = torch.from_numpy(tokens).long()
                logits = self.model(tokens[:, :-1])
                loss = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
                self.scaler.scale(loss / cfg.gradient_accumulation_steps).backward()
                loss_sum += loss.item()
            for optimizer in self.optimizers.values():
                self.scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), cfg.optimizer.grad_clip)
            for name, optimizer in self.optimizers.items():
                self.scaler.step(optimizer)
                self.schedulers[name].step()
            self.scaler.update()
            losses.append(loss_sum / cfg.gradient_accumulation_steps)
        self.step = last
        return losses

    def state(self, best_val_loss: float = math.inf) -> dict[str, Any]:
        windows = self.step * self.cfg.gradient_accumulation_steps * self.cfg.batch_size
        return {
            "step": self.step,
            "epoch": windows // len(self.stream),
            "optimizer": saved(self.optimizers),
            "scheduler": saved(self.schedulers),
            "scaler": self.scaler.state_dict(),
            "best_val_loss": best_val_loss,
        }

    def save(self, folder: Path, tag: str, **changes: Any) -> Path:
        """Save a tag as that trainer does: without the tied head, config.json without our keys."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = dict(self.model.state_dict())
        if self.cfg.model.tie_embeddings:
            del weights["lm_head.weight"]
        save_file(weights, folder / f"{tag}.safetensors")
        torch.save({**self.state(), **changes}, folder / f"{tag}.state.pt")
        config = self.cfg.model_dump(mode="json", exclude={"init_from", "mesh", "window_order"})
        (folder / f"{tag}.config.json").write_text(json.dumps(config))
        return folder / tag


def _optimizers(cfg: TrainingConfig, model: Transformer) -> dict[str, torch.optim.Optimizer]:
    """By name where there are two."""
    opt, named = cfg.optimizer, dict(model.named_parameters())
    matrices = {key: p for key, p in named.items() if p.dim() >= 2}
    hidden = [p for key, p in matrices.items() if key.startswith("layers.")]
    if opt.type == "muon":
        matrices = {key: p for key, p in matrices.items() if not key.startswith("layers.")}
    groups = [
        {"params": list(matrices.values()), "weight_decay": opt.weight_decay},
        {"params": [p for p in named.values() if p.dim() < 2], "weight_decay": 0.0},
    ]
    adam = {"lr": opt.lr, "betas": (opt.beta1, opt.beta2), "eps": opt.eps}
    match opt.type:
        case "sgd":
            return {"": torch.optim.SGD(groups, lr=opt.lr, momentum=opt.beta1)}
        case "adam":
            return {"": torch.optim.Adam(groups, **adam)}
        case "adamw":
            return {"": torch.optim.AdamW(groups, **adam)}
    settings = {"momentum": opt.muon_momentum, "adjust_lr_fn": "match_rms_adamw"}
    muon = torch.optim.Muon(hidden, lr=opt.lr, weight_decay=opt.weight_decay, **settings)
    return {"muon": muon, "adamw": torch.optim.AdamW(groups, **adam)}


def saved(owners: dict[str, Any]) -> Any:
    """The state dict of the only owner, or of each by its name."""
    states = {name: owner.state_dict() for name, owner in owners.items()}
    return states.get("", states)


def bits(value: Any) -> Any:
    """Plain data that compares equal where every bit of every tensor is equal."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(inner) for key, inner in value.items()}
    return [bits(inner) for inner in value] if isinstance(value, list) else value


def foreign_tag(folder: Path, tag: str = "step0000002", updates: int = 2, **changes: Any) -> Path:
    """A tag of a run in PyTorch; its state is replaced, key by key, by what `state` holds."""
    state = changes.pop("state", {})
    cfg = TrainingConfig.model_validate(merged(TINY, changes))
    torch.manual_seed(0)
    run = TorchRun(cfg, Transformer(cfg.model))
    run.train_to(updates)
    return run.save(folder, tag, **state)
