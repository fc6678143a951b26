"""The devices of the run, and their memory."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from light_llm.errors import UserError, is_out_of_memory, one_line

GOOGLE = "0x1ae0"  # the PCI vendor of TPUs
SMALLER = (
    "a smaller batch_size with more gradient_accumulation_steps",
    "gradient_checkpointing",
    "mesh.fsdp over more devices",
)


def devices() -> list[jax.Device]:
    """All devices of the run, those of other hosts included.

    Raises:
        UserError: the platform that was asked for is not here.
    """
    _pass_over_tpu()
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # jax's own, where every platform failed
        asked = os.environ.get("JAX_PLATFORMS")
        reason = (str(error).strip() or "no platform could be initialised").splitlines()[0]
        if asked:
            raise UserError(
                f"JAX_PLATFORMS={asked!r} is not available here ({reason}); install JAX for it "
                "(pip install 'light-llm-jax[gpu]' or '[tpu]'), or unset the variable"
            ) from None
        raise UserError(f"JAX finds no device ({reason}); check its installation") from None


def _pass_over_tpu() -> None:
    """Keep JAX from asking libtpu for chips where there are none: it prints lines of errors.

    libtpu is here without a chip wherever steps are compiled for TPUs ahead of time.
    """
    asked = os.environ.get("JAX_PLATFORMS") or getattr(jax.config, "jax_platforms", None)
    has_plugins = importlib.util.find_spec("jax_plugins") is not None  # CUDA's, ROCm's
    if asked or has_plugins or importlib.util.find_spec("libtpu") is None:
        return
    vendors = [path.read_text().strip() for path in Path("/sys/bus/pci/devices").glob("*/vendor")]
    nodes = [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]
    if GOOGLE not in vendors and not nodes:
        jax.config.update("jax_platforms", "cpu")


def memory_limit(device: jax.Device) -> int | None:
    """Bytes of a device's memory, for a CPU the machine's; None where they are unknown."""
    if device.platform == "cpu":
        return memory_of_machine()
    stats = device.memory_stats()
    return None if stats is None else stats.get("bytes_limit")


def memory_of_machine() -> int:
    """Bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def return_freed_memory() -> None:
    """Give back to the system what this process has freed, which glibc would keep for itself.

    Compiling frees much: 150 MiB for a small model's step on a CPU.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def out_of_memory(
    what: str, remedies: Sequence[str] = SMALLER, sizes: str | None = None
) -> Iterator[None]:
    """Raise running out of memory on a device as a UserError.

    Args:
        remedies: what takes less, each a part of a sentence.
        sizes: what is needed and what is there, a sentence without its end.

    Raises:
        UserError: there was not enough memory.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = "; ".join(filter(None, [one_line(error, 200), sizes]))
        raise UserError(
            f"{what}: out of memory ({reason}); use {', or '.join([*remedies, 'a smaller model'])}"
        ) from None
