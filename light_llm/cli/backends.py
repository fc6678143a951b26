"""The two frameworks in which llm-run generates. Each is imported only when it is used."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from light_llm.errors import UserError
from light_llm.lazy import importing

if TYPE_CHECKING:
    import jax
    import torch

    from light_llm.sampling import NextIds, Sampling

DTYPES = ("float32", "bfloat16", "float16")


class Generate(Protocol):
    """`generate_batch` of either framework, with its model."""

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        eos_id: int | None,
        *,
        first_row: int = 0,
    ) -> Iterator[NextIds]: ...


def _torch(checkpoint: str, device: str | None, dtype: str) -> Generate:
    from light_llm.checkpoint.loading import import_torch, load_transformer

    import_torch()
    import torch

    from light_llm.generate import generate_batch

    chosen = str(_torch_device(device))
    model = load_transformer(checkpoint, device=chosen, dtype=getattr(torch, dtype))
    return functools.partial(generate_batch, model)


def _torch_device(name: str | None) -> torch.device:
    """The device with this name, else the fastest available.

    Raises:
        UserError: no such device here.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    there["cpu"] = True
    if name is None:
        return torch.device(next(kind for kind, available in there.items() if available))
    legal = ", ".join(kind for kind, available in there.items() if available)
    kind, index = _split_device(name, "cpu", "cuda", "mps")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if not there[kind] or index >= count:
        raise UserError(f"--device={name!r} is not available to PyTorch here; use {legal}")
    return torch.device(kind, index)


def _jax(checkpoint: str, device: str | None, dtype: str) -> Generate:
    with importing():
        import jax

        from conversion import load_jax
        from light_jax.generate import generate_batch, moved
        from light_jax.parallel.cache import keep_compiled
        from light_jax.parallel.devices import devices

    devices()  # passes over libtpu where there is no TPU, which it would complain of
    chosen = _jax_device(device)
    keep_compiled()
    with jax.default_device(jax.devices("cpu")[0]):
        model = moved(load_jax(checkpoint), dtype, chosen)
    return functools.partial(generate_batch, model)


def _jax_device(name: str | None) -> jax.Device:
    """The device with this name, else JAX's default.

    Raises:
        UserError: no such device here.
    """
    import jax

    if name is None:
        return jax.devices()[0]
    kind, index = _split_device(name, "cpu", "cuda", "tpu")
    try:
        return jax.devices(kind)[index]
    except (RuntimeError, IndexError):
        here = ", ".join(sorted({jax.default_backend(), "cpu"}))
        raise UserError(f"--device={name!r} is not available to JAX here; use {here}") from None


def _split_device(name: str, *kinds: str) -> tuple[str, int]:
    """`cuda:1` -> ("cuda", 1); without a number, the first."""
    match = re.fullmatch(rf"({'|'.join(kinds)})(?::([0-9]{{1,4}}))?", name)
    if match is None:
        raise UserError(
            f"--device={name!r} must be {', '.join(kinds)}, or one with a number: cuda:1"
        )
    return match[1], int(match[2] or 0)


BACKEND: dict[str, Callable[[str, str | None, str], Generate]] = {"torch": _torch, "jax": _jax}
