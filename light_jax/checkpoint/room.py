"""Whether the host has room for a copy of the state, from which a save goes on beside training."""

from __future__ import annotations

from pathlib import Path

import jax

from light_jax.checkpoint.state import named_arrays
from light_jax.parallel.hosts import Left, is_main, together
from light_jax.state import TrainState
from light_llm.printing import tell

_MACHINE, _GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


class Room:
    """Says for each save of a run whether it can be made from a copy; where not, it tells so once.

    A copy may take half of the memory that is free; the other half is for the steps meanwhile.
    Where nothing says how much is free, there is room.
    """

    def __init__(self) -> None:
        self._told = False

    def __call__(self, state: TrainState) -> bool:
        """Whether all hosts have room; every process calls it."""

        def look() -> None:
            free = free_memory()
            if free is not None and 2 * bytes_of_copy(state) > free:
                raise Left

        try:
            together(look)
        except Left:
            self._tell(bytes_of_copy(state))
            return False
        return True

    def _tell(self, size: int) -> None:
        if is_main() and not self._told:
            tell(
                f"note: a copy of the state ({size / 1e9:.1f} GB) would take more than half of the "
                "memory that is free, so training waits while a checkpoint is written"
            )
        self._told = True


def bytes_of_copy(state: TrainState) -> int:
    """What the copy takes here: process 0 has the weights whole, each its part of the rest."""
    rest = named_arrays(state).values()
    parts = sum(
        shard.data.nbytes
        for array in rest
        for shard in array.addressable_shards
        if shard.replica_id == 0 or jax.default_backend() == "cpu"
    )
    weights = sum(array.nbytes for array in jax.tree.leaves((state.weights, state.average)))
    return parts + weights * (jax.process_index() == 0)


def free_memory() -> int | None:
    """Bytes that this process can still take, by the machine and by its container's limit."""
    limits = [size for size in (_free_of_machine(), _free_of_group()) if size is not None]
    return min(limits, default=None)


def _free_of_machine() -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in _MACHINE.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return None


def _free_of_group() -> int | None:
    """Of a control group (version 2) with a limit; cached files can go."""
    try:
        limit = int((_GROUP / "memory.max").read_text())
        used = int((_GROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        return limit - used + int(stat["inactive_file"]) + int(stat["active_file"])
    except (OSError, ValueError, KeyError):  # `max` is no limit
        return None
