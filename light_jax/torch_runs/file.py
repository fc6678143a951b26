"""Files of torch.save: the only place that opens a pickle. Nothing in one is ever executed."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conversion.weights import as_numpy
from light_llm.errors import UserError, one_line
from light_llm.files import given


def read(path: Path) -> dict[str, Any]:
    """The dict in a file of torch.save, tensors as numpy arrays (bfloat16 as float32).

    Raises:
        UserError: not a whole file of torch.save, or one that holds more than plain data.
    """
    torch = require_torch()
    given.check_regular(path, "the state of a PyTorch trainer")
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise RuntimeError("it is compressed, which torch.save does not do")
            damaged = archive.testzip()  # torch itself compares no checksums
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{path}: not a whole file of torch.save ({error}); copy it again"
        ) from None
    if damaged is not None:
        raise UserError(f"{path}: {damaged} in it is damaged (CRC-32); copy it again")
    try:
        plain = _to_numpy(torch.load(path, map_location="cpu", weights_only=True), torch)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # unknown bytes can raise anything
        raise UserError(
            f"{path}: not plain data of PyTorch, so it was not loaded ({_reason(error)}); use the "
            "file that the PyTorch trainer wrote"
        ) from None
    if not isinstance(plain, dict):
        raise UserError(f"{path}: holds a {type(plain).__name__} where a trainer saves a dict")
    return plain


def write(path: Path, data: Mapping[str, Any]) -> None:
    """Write a dict of plain data and numpy arrays (as tensors) with torch.save.

    Raises:
        OSError: the file cannot be written, as on a full disk.
    """
    torch = require_torch()
    tensors = _to_tensors(data, torch)
    try:
        torch.save(tensors, path)
    except RuntimeError as error:  # torch's type for a disk that fails
        raise OSError(str(error)[-200:]) from error


def require_torch() -> Any:
    """The module torch.

    Raises:
        UserError: it is not installed.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError(
            "PyTorch is not installed, and reading or writing a .state.pt needs it; "
            "run `pip install 'light-llm-jax[torch]'`"
        ) from None
    return torch


def require_muon() -> Any:
    """torch.optim.Muon.

    Raises:
        UserError: PyTorch is not installed, or has none.
    """
    torch = require_torch()
    if not hasattr(torch.optim, "Muon"):
        raise UserError(
            f"optimizer.type=muon: PyTorch {torch.__version__} has no torch.optim.Muon, which came "
            "with 2.9; run `pip install 'torch>=2.9'`"
        )
    return torch.optim.Muon


def _reason(error: Exception) -> str:
    """torch's message without its advice to load the file anyway."""
    text = one_line(error, 10_000)
    if wanted := re.search(r"GLOBAL (\S+)", text):
        return f"it asks for {wanted.group(1)}"
    return text.rpartition("WeightsUnpickler error: ")[2][:160]


def _to_numpy(value: Any, torch: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return as_numpy(value)
    if isinstance(value, dict):
        return {key: _to_numpy(inner, torch) for key, inner in value.items()}
    return [_to_numpy(inner, torch) for inner in value] if isinstance(value, list) else value


def _to_tensors(value: Any, torch: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, Mapping):
        return {key: _to_tensors(inner, torch) for key, inner in value.items()}
    return value
