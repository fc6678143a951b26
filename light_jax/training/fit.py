"""Whether the training step fits its devices, found by compiling it; nothing is allocated."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh

from light_jax.config import TrainingConfig
from light_jax.parallel.sharding import batch_shards, check_batch, make_mesh
from light_jax.reporting.flops import flops_per_token
from light_jax.reporting.program import Program, read
from light_jax.training.compiled import blank_state, compile_train_step
from light_llm.errors import UserError, one_line

MORE_COMPILES = 3  # after the first, to find the largest batch
EXACTNESS = 16  # the largest batch is found to one part in so many
GROWTH = 64  # a batch that is tried is at most so many times one that was
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

# How the compilers say that a program does not fit: the whole of it, or its temporaries alone.
_WHOLE = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm")
_TEMPORARIES = re.compile(r"total memory required for HLO temporaries \(([\d.]+)([KMGT]?)\)")


@dataclasses.dataclass(frozen=True)
class Fit:
    """What compiling the step showed. Memory in bytes of one device."""

    program: Program | None  # None where the compiler refused it: it does not fit
    needed: int | None  # in all; of a refused program as far as the compiler said
    limit: int | None  # None where it is not known
    compile_seconds: float  # of the step as configured
    flops_per_step: float  # of the model's own arithmetic, all devices together
    largest_batch_size: int | None  # the largest that compiled and fits; None: not sought, or none

    @property
    def fits(self) -> bool | None:
        """None where the limit is not known."""
        if self.program is None:
            return False
        return None if self.limit is None else self.program.total <= self.limit


@dataclasses.dataclass(frozen=True)
class _Tried:
    """One compilation. Bytes of one device."""

    program: Program | None
    needed: int | None


def measure(
    cfg: TrainingConfig,
    devices: Sequence[jax.Device],
    memory_limit: int | None,
    *,
    largest: bool = True,
) -> Fit:
    """Compile the training step for the config's mesh over these devices.

    Inside `compiling_for` their target where they are not here.

    Args:
        memory_limit: bytes of each device.
        largest: also seek the largest `batch_size` that fits, by a few more compilations.

    Raises:
        UserError: the mesh or the batch does not suit the devices, or the step does not compile.
    """
    mesh = make_mesh(cfg.mesh, devices)
    check_batch(cfg.batch_size, mesh)
    state, shardings = blank_state(cfg, mesh)
    held = _bytes_per_device(state, shardings)

    def attempt(batch_size: int) -> _Tried:
        tried_cfg = cfg.model_copy(update={"batch_size": batch_size})
        return _compile(tried_cfg, mesh, lambda c: compile_train_step(c, mesh, shardings, state))

    start = time.perf_counter()
    first = attempt(cfg.batch_size)
    seconds = time.perf_counter() - start
    best = None
    if largest and memory_limit is not None:
        best = _largest(attempt, cfg.batch_size, first, held, batch_shards(mesh), memory_limit)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    per_token = flops_per_token(cfg.model, num_params, cfg.seq_len)
    return Fit(
        program=first.program,
        needed=first.needed,
        limit=memory_limit,
        compile_seconds=seconds,
        flops_per_step=per_token * cfg.tokens_per_step,
        largest_batch_size=best,
    )


def _bytes_per_device(state: object, shardings: object) -> int:
    return sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True)
    )


def _compile(
    cfg: TrainingConfig, mesh: Mesh, compile_step: Callable[[TrainingConfig], object]
) -> _Tried:
    """
    Raises:
        UserError: it does not compile, and memory is not why.
    """
    try:
        program = read(compile_step(cfg))
    except (RuntimeError, ValueError, NotImplementedError) as error:  # jax's are RuntimeErrors
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
            kind = mesh.devices.flat[0].device_kind
            raise UserError(
                f"the step does not compile for {mesh.size} × {kind} ({one_line(error, 300)}); "
                "try another mesh, attention or dtype"
            ) from None
        return _Tried(None, _refused_bytes(message))
    return _Tried(program, program.total)


def _refused_bytes(message: str) -> int | None:
    """The bytes that a compiler asked for in vain; None where it does not say."""
    found = _WHOLE.search(message) or _TEMPORARIES.search(message)
    return None if found is None else int(float(found[1]) * UNITS[found[2]])


def _largest(
    attempt: Callable[[int], _Tried], start: int, first: _Tried, held: int, unit: int, limit: int
) -> int | None:
    """The largest batch that fits, a multiple of `unit`, of those that were compiled.

    Memory grows about linearly with the batch, so each batch that is tried is where the line
    through what is known meets the limit.

    Args:
        held: bytes of the state, which no batch goes below.
    """
    if held > limit:
        return None
    sizes = {0: held, start: _size(first, limit)}
    for _ in range(MORE_COMPILES):
        fitting = max(batch for batch, size in sizes.items() if size <= limit)
        too_large = min((b for b in sizes if b > fitting), default=None)
        if too_large is not None and too_large - fitting <= max(unit, fitting // EXACTNESS):
            break
        batch = _meets_limit(sizes, fitting, too_large, unit, limit)
        sizes[batch] = _size(attempt(batch), limit)
    return max(batch for batch, size in sizes.items() if size <= limit) or None


def _size(tried: _Tried, limit: int) -> int:
    if tried.program is not None:
        return tried.program.total
    return max(tried.needed or 2 * limit, limit + 1)


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
