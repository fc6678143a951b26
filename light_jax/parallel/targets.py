"""Devices that need not be here: what is known of them, and how to compile for them.

`targets.json` describes them, a device a row. A target is a number of them, by a name such as
`v5e-8` or `h100-8`. XLA compiles for a target without its hardware: for a TPU with libtpu, for an
NVIDIA GPU with JAX's CUDA wheels, which need no driver.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import importlib.resources
import importlib.util
import json
import os
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import topologies

from light_jax.parallel.cuda import answering, memory_fraction, target_config
from light_llm.errors import UserError, one_line

# What libtpu would look for at Google's metadata server, and what it logs when it does not find it.
LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
CUDA_ENVIRONMENT = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}  # it asks the driver, which may be none
GPUS_PER_HOST = 8
LISTED_GPUS = (1, 2, 4, 8, 16, 32, 64)
NEVER = 1e9  # seconds of compiling


@dataclasses.dataclass(frozen=True)
class Device:
    """A row of the table: a kind of device."""

    name: str
    platform: str  # tpu or cuda
    kinds: tuple[str, ...]  # how jax's device_kind begins
    peak_flops: float | None  # dense bfloat16, FLOP/s of one jax device
    source: str
    memory: int | None = None  # bytes of one jax device; None where it is not a target
    tpu: dict[str, Any] | None = None
    cuda: dict[str, Any] | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers that its targets are listed with."""
        if self.tpu is not None:
            return tuple(map(int, self.tpu["shapes"]))
        return LISTED_GPUS if self.cuda is not None else ()

    def has(self, size: int) -> bool:
        if self.cuda is not None:
            return 0 < size <= GPUS_PER_HOST or (size > 0 and size % GPUS_PER_HOST == 0)
        return size in self.sizes


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for, by name."""

    name: str
    device: Device
    devices: list[jax.Device]  # they compile, and hold nothing
    memory_limit: int  # bytes that a program may take on each

    @property
    def kind(self) -> str:
        return self.devices[0].device_kind


@functools.cache
def table() -> tuple[Device, ...]:
    """All devices that are known."""
    text = importlib.resources.files("light_jax.parallel").joinpath("targets.json").read_text()
    return tuple(
        Device(**{**row, "kinds": tuple(row["kinds"])}) for row in json.loads(text)["devices"]
    )


def device_of(kind: str) -> Device | None:
    """The row of a `device_kind`, by the longest beginning that ends where a word does."""
    if " MIG " in kind:  # a part of a card
        return None
    fitting = [
        (len(begin), device)
        for device in table()
        for begin in device.kinds
        if kind.startswith(begin) and not kind[len(begin) : len(begin) + 1].isalnum()
    ]
    return max(fitting, key=lambda pair: pair[0])[1] if fitting else None


def known_names() -> list[str]:
    """Names of targets. A GPU's number may also be any up to 8, and any multiple of 8."""
    return [f"{device.name}-{size}" for device in table() for size in device.sizes]


def target(name: str) -> Target:
    """The devices of that name, ready to compile for.

    Names of TPUs are those of Google Cloud: for v5p and tpu7x they count TensorCores, two a chip.
    Comes before anything else that asks jax for devices: the environment is read only once.

    Raises:
        UserError: there is no such name, or what compiles for it is not installed.
    """
    device, size = _parse(name)
    if device.tpu is not None:
        devices = _tpu_devices(device.tpu, size)
    else:
        devices = _gpu_devices(device, size)
    assert device.memory is not None
    limit = device.memory
    if device.cuda is not None:
        limit = int(limit * memory_fraction())
    return Target(name, device, devices, limit)


def _parse(name: str) -> tuple[Device, int]:
    family, _, number = name.rpartition("-")
    device = next((row for row in table() if row.name == family and row.sizes), None)
    size = int(number) if number.isascii() and number.isdigit() and len(number) < 6 else 0
    if device is not None and device.has(size) and number == str(size):
        return device, size
    if device is not None:
        raise UserError(f"devices={name!r}: {family} comes in {_sizes(device)}")
    close = difflib.get_close_matches(name.lower(), known_names(), n=3, cutoff=0.5)
    nearest = f"the nearest are {', '.join(close)}; " if close else ""
    raise UserError(f"devices={name!r} is not known; {nearest}known are {_families(name)}")


def _sizes(device: Device) -> str:
    if device.cuda is not None:
        return f"1 to {GPUS_PER_HOST}, and multiples of {GPUS_PER_HOST}"
    return ", ".join(map(str, device.sizes))


def _families(name: str) -> str:
    """All names, those of one list of sizes together, the most similar first."""
    asked = name.lower().partition("-")[0]
    rows = [row for row in table() if row.sizes]
    rows.sort(key=lambda row: -difflib.SequenceMatcher(None, asked, row.name).ratio())
    together: dict[str, list[str]] = {}
    for row in rows:
        together.setdefault(_sizes(row), []).append(f"{row.name}-N")
    return "; ".join(f"{', '.join(names)} with N = {size}" for size, names in together.items())


def _tpu_devices(tpu: dict[str, Any], size: int) -> list[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "compiling for a TPU that is not here needs libtpu: pip install 'light-llm-jax[tpu]'"
        )
    _set_where_unset(LIBTPU_ENVIRONMENT)
    shape = tpu["shapes"][str(size)]
    one_host = {"chips_per_host_bounds": (1, 1, 1)} if shape in tpu["one_host"] else {}
    return _topology(f"{tpu['prefix']}:{shape}", "tpu", **one_host)


def _gpu_devices(device: Device, size: int) -> list[jax.Device]:
    if not any(importlib.util.find_spec(plugin) for plugin in _cuda_plugins()):
        raise UserError(
            "compiling for a GPU that is not here needs JAX's CUDA wheels: "
            "pip install 'light-llm-jax[gpu]'"
        )
    _set_where_unset(CUDA_ENVIRONMENT)
    hosts, on_each = divmod(size, GPUS_PER_HOST) if size > GPUS_PER_HOST else (1, size)
    topology = f"1x{hosts}x{on_each or GPUS_PER_HOST}"
    assert device.cuda is not None
    assert device.memory is not None
    config = target_config(device.cuda, device.memory)
    return _topology(device.name, "cuda", topology=topology, target_config=config)


def _set_where_unset(variables: dict[str, str]) -> None:
    for variable, value in variables.items():
        os.environ.setdefault(variable, value)


def _cuda_plugins() -> list[str]:
    if importlib.util.find_spec("jax_plugins") is None:
        return []
    return ["jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12"]


def _topology(name: str, platform: str, **kwargs: Any) -> list[jax.Device]:
    try:
        return topologies.get_topology_desc(name, platform=platform, **kwargs).devices
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise UserError(
            f"JAX {jax.__version__} cannot compile for {name} here ({one_line(error, 300)}); "
            f"reinstall pip install 'light-llm-jax[{'tpu' if platform == 'tpu' else 'gpu'}]'"
        ) from None


@contextlib.contextmanager
def compiling_for(target: Target | None) -> Iterator[None]:
    """Programs are compiled inside for the target; None is the devices that are here.

    jax's cuDNN attention looks at the GPU that is present while it is traced and lowered; inside,
    it is answered from the target. No program is kept in jax's persistent cache, which cannot read
    those of devices that are not here. Both hold for the whole process: no other thread may compile
    for another device meanwhile.

    Raises:
        UserError: this version of jax asks in another way.
    """
    if target is None:
        yield
        return
    with _nothing_kept(), contextlib.ExitStack() as stack:
        if target.device.cuda is not None:
            stack.enter_context(answering(target.device.cuda["capability"]))
        yield


@contextlib.contextmanager
def _nothing_kept() -> Iterator[None]:
    settings: Any = jax.config  # its names are made as it is imported
    before = settings.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", NEVER)
    try:
        yield
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
