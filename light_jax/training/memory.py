"""Whether a run fits into the memory of its devices, and what makes it smaller.

An ordinary start and `--check` compare the same sizes with the same limit, and say the same.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from light_jax.config import TrainingConfig
from light_jax.parallel.devices import memory_limit, memory_of_machine
from light_jax.parallel.sharding import batch_shards
from light_jax.reporting.program import temporaries_of
from light_jax.reporting.units import size
from light_jax.state import TrainState, bytes_per_device
from light_llm.errors import UserError

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

# How a TPU's compiler words a refusal. Both sizes are of all that the program takes: with the
# arguments, though the second is said to be of temporaries. A size of other memory than hbm is
# none of the step's.
_REFUSAL = re.compile(
    r"(?:Used |total memory required for HLO temporaries \()([\d.]+)([KMGT]?)"
    r"(?: of [\d.]+[KMGT]? hbm|\))"
)


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes that a step takes on one device, whether it compiled or was refused."""

    arguments: int  # state and tokens
    temporaries: int | None
    """With the outputs that do not take an argument's place. None where the compiler refused the
    step and did not say."""
    refused: bool = False  # by the compiler, for its size

    @property
    def total(self) -> int | None:
        return None if self.temporaries is None else self.arguments + self.temporaries

    def fits(self, limit: int) -> bool:
        return not self.refused and self.total is not None and self.total <= limit


@dataclasses.dataclass(frozen=True)
class Room:
    """The memory of one device."""

    limit: int  # bytes
    device: str  # as a message names it, with its verb

    def __str__(self) -> str:
        return f"{self.device} {size(self.limit)}"


def room(devices: Sequence[jax.Device]) -> Room | None:
    """What each of this process's devices holds; None where that is unknown.

    The devices of a CPU share the machine's memory.
    """
    device, count = devices[0], len(devices)
    limit = memory_limit(device)
    if limit is None:
        return None
    if device.platform == "cpu" and count > 1:
        return Room(limit // count, f"each of this machine's {count} devices holds")
    return Room(limit, f"{device.device_kind} holds")


def memory_of(compiled: Any) -> StepMemory | None:
    """What a compiled step takes; None if XLA does not report it."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    new_outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    temporaries = temporaries_of(compiled, analysis) + new_outputs
    return StepMemory(analysis.argument_size_in_bytes, temporaries)


def in_words(memory: StepMemory | None, there: Room | None) -> str | None:
    """What a compiled step takes and what a device holds, as far as they are known."""
    if memory is None or memory.total is None:
        return None
    takes = f"the compiled step takes {size(memory.total)} per device"
    return takes if there is None else f"{takes} where {there}"


def memory_of_refused(
    reason: str, cfg: TrainingConfig, state: TrainState, mesh: Mesh
) -> StepMemory:
    """What a step would take that a compiler refused.

    Args:
        reason: the compiler's.
        state: shapes and shardings are enough.
    """
    rows = cfg.gradient_accumulation_steps * cfg.batch_size // batch_shards(mesh)
    arguments, temporaries = bytes_per_device(state) + 4 * rows * (cfg.seq_len + 1), None
    if found := _REFUSAL.search(reason):
        temporaries = max(0, int(float(found[1]) * UNITS[found[2]]) - arguments)
    return StepMemory(arguments, temporaries, refused=True)


def check_tokens(cfg: TrainingConfig) -> None:
    """
    Raises:
        UserError: this machine cannot hold the tokens of a step.
    """
    memory = memory_of_machine()
    tokens = 4 * cfg.gradient_accumulation_steps * cfg.batch_size * (cfg.seq_len + 1)
    if tokens > memory:
        raise UserError(
            f"the tokens of one step take {size(tokens)} where the machine holds {size(memory)}; "
            f"lower batch_size={cfg.batch_size} or "
            f"gradient_accumulation_steps={cfg.gradient_accumulation_steps}"
        )


def check_state(state: TrainState, mesh: Mesh, there: Room | None) -> None:
    """A cheap check before anything is compiled.

    Raises:
        UserError: a device cannot hold its part of the state.
    """
    held = bytes_per_device(state)
    if there is not None and held > there.limit:
        raise UserError(
            f"the state ({state.parts}) takes {size(held)} per device where {there}; use "
            f"a smaller model, or {_more_parts(mesh)}"
        )


def check_step(
    cfg: TrainingConfig,
    mesh: Mesh,
    memory: StepMemory,
    there: Room | None,
    *,
    resuming: bool,
    largest: int | None = None,
) -> None:
    """Before anything is allocated.

    Args:
        largest: the largest batch_size that fits, where that was sought and found.

    Raises:
        UserError: a device cannot hold what the step takes.
    """
    if not memory.refused and (there is None or memory.fits(there.limit)):
        return
    parts = f"{size(memory.arguments)} of arguments (state and tokens)"
    if memory.temporaries is not None:
        parts += f" and {size(memory.temporaries)} of temporaries"
    takes = "more memory" if memory.total is None else f"{size(memory.total)} per device"
    holds = "than a device holds" if there is None else f"where {there}"
    problem = f"the step takes {takes} {holds}: {parts}"
    if memory.refused:
        problem += ", and the compiler refuses it"
    advice = remedies(cfg, mesh, memory, there, resuming=resuming, largest=largest)
    raise UserError(f"{problem}; use {', or '.join(advice)}")


def remedies(
    cfg: TrainingConfig,
    mesh: Mesh,
    memory: StepMemory | None = None,
    there: Room | None = None,
    *,
    resuming: bool,
    largest: int | None = None,
) -> list[str]:
    """What lets a step fit, the cheapest first; a resumed run can only be divided further.

    Args:
        memory: what the step takes, if that is known.
        there: what a device holds, if that is known.
        largest: the largest batch_size that fits, if that is known.
    """
    found = []
    smaller = _smaller_batch(cfg, mesh, memory, there, largest)
    if smaller is not None and not resuming:
        total = cfg.batch_size * cfg.gradient_accumulation_steps
        found.append(
            f"`batch_size: {smaller}, gradient_accumulation_steps: {total // smaller}` (the same "
            "tokens per step)"
        )
    if not cfg.model.gradient_checkpointing and not resuming:
        found.append("`model.gradient_checkpointing: true`")
    if cfg.ema_decay is not None:
        found.append("`ema_decay: null` (4 bytes less per parameter, the same training)")
    return [*found, _more_parts(mesh)]


def _smaller_batch(
    cfg: TrainingConfig,
    mesh: Mesh,
    memory: StepMemory | None,
    there: Room | None,
    largest: int | None,
) -> int | None:
    """The largest batch_size that should fit, or the smallest that the mesh takes; None if this
    one is.

    The temporaries are taken as proportional to the batch, but for one more copy of a third of the
    state: the sum of the gradients (weights and two moments are the other two of AdamW).
    """
    unit, total = batch_shards(mesh), cfg.batch_size * cfg.gradient_accumulation_steps
    sizes = [batch for batch in range(unit, cfg.batch_size, unit) if total % batch == 0]
    if not sizes:
        return None
    if largest is not None:
        fitting = [batch for batch in sizes if batch <= largest]
    elif memory is None or memory.temporaries is None or there is None:
        return sizes[-1]
    else:
        fixed = memory.arguments + memory.arguments // 3
        per_row = memory.temporaries / cfg.batch_size
        fitting = [batch for batch in sizes if fixed + per_row * batch <= there.limit]
    return fitting[-1] if fitting else sizes[0]


def _more_parts(mesh: Mesh) -> str:
    """The remedy of dividing the state over more devices."""
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    if data > 1:
        return f"`mesh: {{data: 1, fsdp: {data * fsdp}, tensor: {mesh.shape['tensor']}}}`"
    where = "hosts" if mesh.devices.flat[0].platform == "cpu" else "devices"
    return f"mesh.fsdp over more {where} than {fsdp if where == 'devices' else 'this'}"
