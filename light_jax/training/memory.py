"""Whether a run fits into the memory of its devices, and what makes it smaller."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from jax.sharding import Mesh

from light_jax.config import TrainingConfig
from light_jax.parallel.devices import memory_limit, memory_of_machine
from light_jax.parallel.sharding import batch_shards
from light_jax.reporting.console import size
from light_jax.state import Run, TrainState, bytes_per_device
from light_llm.errors import UserError


class StepMemory(NamedTuple):
    """Bytes that a compiled step takes on one device."""

    arguments: int  # state and tokens
    temporaries: int  # with the outputs that do not take an argument's place

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries


@dataclasses.dataclass(frozen=True)
class Room:
    """The memory of one device."""

    limit: int  # bytes
    device: str  # as a message names it, with its verb

    def __str__(self) -> str:
        return f"{self.device} {size(self.limit)}"


def room(mesh: Mesh) -> Room | None:
    """What each device of this process holds; None where that is unknown.

    The devices of a CPU share the machine's memory.
    """
    device, count = mesh.local_devices[0], len(mesh.local_devices)
    limit = memory_limit(device)
    if limit is None:
        return None
    if device.platform == "cpu" and count > 1:
        return Room(limit // count, f"each of this machine's {count} devices holds")
    return Room(limit, f"{device.device_kind} holds")


def check_state(cfg: TrainingConfig, state: TrainState, mesh: Mesh) -> None:
    """A cheap check before anything is compiled.

    Raises:
        UserError: the machine cannot hold a step's tokens, or a device its part of the state.
    """
    memory = memory_of_machine()
    tokens = 4 * cfg.gradient_accumulation_steps * cfg.batch_size * (cfg.seq_len + 1)
    if tokens > memory:
        raise UserError(
            f"the tokens of one step take {size(tokens)} where the machine holds {size(memory)}; "
            f"lower batch_size={cfg.batch_size} or "
            f"gradient_accumulation_steps={cfg.gradient_accumulation_steps}"
        )
    held, there = bytes_per_device(state), room(mesh)
    if there is not None and held > there.limit:
        raise UserError(
            f"the state (weights and optimizer) takes {size(held)} per device where {there}; use "
            f"a smaller model, or {_more_parts(mesh)}"
        )


def check_step(run: Run, memory: StepMemory, there: Room) -> None:
    """Before anything is allocated.

    Raises:
        UserError: a device cannot hold what the compiled step takes.
    """
    if memory.total > there.limit:
        raise UserError(
            f"the step takes {size(memory.total)} per device where {there}: "
            f"{size(memory.arguments)} of arguments (state and tokens) and "
            f"{size(memory.temporaries)} of temporaries; use "
            f"{', or '.join(remedies(run, memory, there))}"
        )


def remedies(run: Run, memory: StepMemory | None = None, there: Room | None = None) -> list[str]:
    """What lets a step fit, the cheapest first; a resumed run can only be divided further.

    Args:
        memory: what the step takes, if that is known.
        there: what a device holds, if that is known.
    """
    cfg, found = run.cfg, []
    smaller = _smaller_batch(cfg, run.mesh, memory, there)
    if smaller is not None and run.resumed is None:
        total = cfg.batch_size * cfg.gradient_accumulation_steps
        found.append(
            f"`batch_size: {smaller}, gradient_accumulation_steps: {total // smaller}` (the same "
            "tokens per step)"
        )
    if not cfg.model.gradient_checkpointing and run.resumed is None:
        found.append("`model.gradient_checkpointing: true`")
    return [*found, _more_parts(run.mesh)]


def _smaller_batch(
    cfg: TrainingConfig, mesh: Mesh, memory: StepMemory | None, there: Room | None
) -> int | None:
    """The largest batch_size that should fit, or the smallest that the mesh takes; None if this
    one is.

    The temporaries are taken as proportional to the batch, but for one more copy of a third of the
    state: the sum of the gradients (weights and two moments are the other two of AdamW).
    """
    rows = batch_shards(mesh)
    sizes = [b for b in range(rows, cfg.batch_size, rows) if cfg.batch_size % b == 0]
    if not sizes:
        return None
    if memory is None or there is None:
        return sizes[-1]
    fixed = memory.arguments + memory.arguments // 3
    fitting = [b for b in sizes if fixed + memory.temporaries * b // cfg.batch_size <= there.limit]
    return fitting[-1] if fitting else sizes[0]


def _more_parts(mesh: Mesh) -> str:
    """The remedy of dividing the state over more devices."""
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    if data > 1:
        return f"`mesh: {{data: 1, fsdp: {data * fsdp}, tensor: {mesh.shape['tensor']}}}`"
    where = "hosts" if mesh.devices.flat[0].platform == "cpu" else "devices"
    return f"mesh.fsdp over more {where} than {fsdp if where == 'devices' else 'this'}"
