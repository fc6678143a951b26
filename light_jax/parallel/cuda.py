"""An NVIDIA GPU that is not here, as XLA and jax want to know it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Iterator
from typing import Any

import jax

from light_llm.errors import UserError

CUDNN = (9, 10, 0)  # the version that is compiled for where no wheel says one
MEMORY_FRACTION = 0.75  # of a GPU's memory, unless the environment says otherwise; jax's default


def target_config(card: dict[str, Any], memory: int) -> str:
    """What XLA wants to know of a card, as the text of its GpuTargetConfigProto.

    Args:
        card: `cuda` of its row in targets.json.
        memory: bytes that it has.
    """
    facts = dict(card)
    description = facts.pop("description")
    major, minor = facts.pop("capability").split(".")
    facts |= {
        "device_memory_size": memory,
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    info = " ".join(f"{fact}: {value}" for fact, value in facts.items())
    dnn = "major: {} minor: {} patch: {}".format(*_cudnn_version())
    return (
        f"gpu_device_info {{ {info} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
        f'platform_name: "CUDA" dnn_version_info {{ {dnn} }} '
        f'device_description_str: "{description}"'
    )


def _cudnn_version() -> tuple[int, int, int]:
    """Of the wheel that is installed."""
    for wheel in ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError):
            major, minor, patch = importlib.metadata.version(wheel).split(".")[:3]
            return int(major), int(minor), int(patch)
    return CUDNN


def memory_fraction() -> float:
    """The part of a GPU's memory that jax takes, as it reads the environment."""
    for variable in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        with contextlib.suppress(KeyError, ValueError):
            return float(os.environ[variable])
    return MEMORY_FRACTION


@contextlib.contextmanager
def answering(capability: str) -> Iterator[None]:
    """Inside, what jax's cuDNN attention asks of the GPU that is present has this card's answers.

    Raises:
        UserError: this version of jax asks in another way.
    """
    from jax._src.cudnn import fused_attention_stablehlo as fused

    ours = _numbers(capability)
    major, minor, patch = _cudnn_version()
    answers = {
        "check_cudnn_version": lambda: major * 10000 + minor * 100 + patch,
        "check_compute_capability": lambda asked: ours >= _numbers(asked),
        "is_cuda_compute_capability_equal": lambda asked: ours == _numbers(asked),
    }
    questions = {name: getattr(fused, name, None) for name in answers}
    if None in questions.values():
        raise UserError(
            f"JAX {jax.__version__} does not say how cuDNN attention is compiled for a GPU that is "
            "not here; use jax 0.10 to 0.12"
        )
    try:
        for name, answer in answers.items():
            setattr(fused, name, answer)
        yield
    finally:
        for name, question in questions.items():
            setattr(fused, name, question)


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))
