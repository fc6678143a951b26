"""Whether the training step fits its devices, found by compiling it; nothing is allocated."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from light_jax.config import TrainingConfig
from light_jax.parallel.sharding import batch_shards, check_batch, check_heads
from light_jax.reporting.attention import attention_of
from light_jax.reporting.flops import flops_per_token
from light_jax.reporting.program import Program, read
from light_jax.state import TrainState, bytes_per_device
from light_jax.training.compiled import Attempt, attempt, blank_state
from light_jax.training.memory import Room, StepMemory

MORE_COMPILES = 3  # at most, after the first, to find the largest batch
EXACTNESS = 8  # the largest batch is found to one part in so many
GROWTH = 2**5  # a batch that is tried is at most so many times one that was
SLOW = 60.0  # seconds: what took longer to compile is the last that is tried

Progress = Callable[[str], contextlib.AbstractContextManager[None]]
"""What is being compiled -> the context in which that happens."""


def unseen(what: str) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


@dataclasses.dataclass(frozen=True)
class Fit:
    """What compiling the step showed."""

    program: Program | None  # None where the compiler refused it: it does not fit
    attention: str  # the kernel: of a refused program the one that it asked for
    memory: StepMemory | None  # None where the compiler does not say
    compile_seconds: float  # of the step as configured
    flops_per_step: float  # of the model's own arithmetic, all devices together
    largest_batch_size: int | None
    """The largest that compiled and fits, 0 if none does; None where it was not sought."""


def measure(
    cfg: TrainingConfig,
    mesh: Mesh,
    there: Room | None,
    *,
    largest: bool = True,
    progress: Progress = unseen,
) -> Fit:
    """Compile the training step for this mesh.

    Inside `compiling_for` their target where its devices are not here.

    Args:
        there: what a device holds, if that is known.
        largest: also seek the largest `batch_size` that fits, by a few more compilations.

    Raises:
        UserError: the batch or the heads do not suit the mesh, or the step does not compile.
    """
    check_batch(cfg.batch_size, mesh)
    check_heads(cfg.model, mesh)
    state, shardings = blank_state(cfg, mesh)

    def tried(batch_size: int) -> Attempt:
        with progress(f"batch_size {batch_size}"):
            sized = cfg.model_copy(update={"batch_size": batch_size})
            return attempt(sized, mesh, shardings, state)

    first, best = tried(cfg.batch_size), None
    if largest and there is not None and first.memory is not None:
        best = _largest(
            lambda batch_size: tried(batch_size).memory,
            cfg.batch_size,
            first.memory,
            _without_a_batch(state),
            batch_shards(mesh),
            there.limit,
        )
    program = None if first.step is None else read(first.step)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return Fit(
        program=program,
        attention=attention_of(cfg, mesh).kernel if program is None else program.attention,
        memory=first.memory,
        compile_seconds=first.seconds,
        flops_per_step=flops_per_token(cfg.model, num_params, cfg.seq_len) * cfg.tokens_per_step,
        largest_batch_size=best,
    )


def _without_a_batch(state: TrainState) -> int:
    """Bytes of one device that a step takes whatever its batch: the state, and the gradients."""
    return bytes_per_device(state) + bytes_per_device(state.params)


def _largest(
    tried: Callable[[int], StepMemory | None],
    start: int,
    first: StepMemory,
    fixed: int,
    unit: int,
    limit: int,
) -> int:
    """The largest batch that fits, a multiple of `unit`, of those that were compiled; 0 if none.

    Memory grows about linearly with the batch. So each batch that is tried is where the line
    through what is known meets the limit, and none is tried for little.

    Args:
        start: the batch of `first`.
        fixed: bytes that a step without a batch would take, nearly.
    """
    sizes = {0: min(fixed, limit), start: _size(first, limit)}
    for _ in range(MORE_COMPILES):
        fitting = max(batch for batch, size in sizes.items() if size <= limit)
        too_large = min((b for b in sizes if b > fitting), default=None)
        if too_large is not None and too_large - fitting <= unit:
            break
        batch = _meets_limit(sizes, fitting, too_large, unit, limit)
        if batch - fitting <= fitting // EXACTNESS:
            break
        began = time.perf_counter()
        sizes[batch] = _size(tried(batch), limit)
        if fitting > 0 and time.perf_counter() - began > SLOW:
            break
    return max(batch for batch, size in sizes.items() if size <= limit)


def _size(memory: StepMemory | None, limit: int) -> int:
    """In bytes; more than the limit where it does not fit."""
    total = 2 * limit if memory is None or memory.total is None else memory.total
    return total if memory is not None and memory.fits(limit) else max(total, limit + 1)


def _meets_limit(
    sizes: dict[int, int], fitting: int, too_large: int | None, unit: int, limit: int
) -> int:
    """The batch to try next: more than fits, and less than is too large."""
    if too_large is None:
        left, right = sorted(sizes)[-2:]
        most = GROWTH * right
    else:
        left, right, most = fitting, too_large, too_large - unit
    slope = max((sizes[right] - sizes[left]) / (right - left), 1e-9)
    batch = left + (limit - sizes[left]) / slope
    return int(max(min(batch, most) // unit, fitting // unit + 1) * unit)
