"""Size and CRC-32 of a checkpoint's files, compared with those that its config.json records."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

from light_llm.checkpoint import parts, reading
from light_llm.checkpoint.layout import STATE, WEIGHTS, Files
from light_llm.checkpoint.parts import is_weights
from light_llm.checkpoint.reading import Checkpoint, Member
from light_llm.checkpoint.tensors import read_tensors
from light_llm.errors import UserError
from light_llm.files import given


def digest(path: Path) -> Member:
    """Size and CRC-32 of one file's bytes."""
    crc, size = 0, 0
    with given.open_regular(path) as file:
        while chunk := file.read(1 << 22):
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    return Member(size, crc)


def verify(checkpoint: Checkpoint, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Compare files with the digests of config.json, before anything is parsed.

    Args:
        wanted: chooses files by name relative to the tag: `.safetensors`, `.state/_METADATA`, …

    Raises:
        UserError: a file is missing, cut short or changed. A config without digests (as the
            PyTorch trainer writes it) has nothing to compare with and passes.
    """
    files, record = checkpoint.files, checkpoint.record
    recorded = record.files if record else {}
    chosen = list(filter(wanted, recorded))
    for name in chosen:
        if parts.is_average(name):
            continue
        path = _path_of(files, name)
        if not is_weights(name) and path.is_symlink():  # orbax makes none
            raise UserError(f"{path}: is a link; a state holds its own files; use another tag")
        _verify_file(path, recorded[name])
    if weights := {name for name in recorded if is_weights(name) and wanted(name)}:
        _verify_form(files, weights)
    if any(parts.is_average(name) for name in chosen):
        average = reading.averaged(checkpoint)
        if average is None:
            raise UserError(
                f"{files.prefix}{parts.AVERAGE}{WEIGHTS}: is missing from the checkpoint; use "
                "another tag"
            )
        verify(average, is_weights)


def _verify_form(files: Files, recorded: set[str]) -> None:
    """Check that what readers take for the weights is what was recorded, an index included.

    An index has no checksum: what it says must be what its parts hold, which have one.
    """
    there = {WEIGHTS}
    if parts.is_index(files.weights):
        there = {name.removeprefix(files.tag) for name in parts.read_index(files.weights).names}
    if there != recorded:
        odd = sorted(there ^ recorded)[0]
        raise UserError(
            f"{files.weights}: the weights are not the files that {files.config.name} records, "
            f"which differ in {files.tag}{odd}; use another tag"
        )
    if parts.is_index(files.weights):
        read_tensors(files.weights)


def _path_of(files: Files, name: str) -> Path:
    ending, _, inner = name.partition("/")
    place = {STATE: files.state}.get(ending)
    if is_weights(name):
        place = parts.place(files.weights, f"{files.tag}{name}")
    if place is None or ".." in Path(inner).parts or Path(inner).is_absolute():
        raise UserError(
            f"{files.config}: checkpoint.files names {name!r}, which does not belong to a "
            "checkpoint; use another tag"
        )
    return place / inner if inner else place


def _verify_file(path: Path, recorded: Member) -> None:
    if not path.is_file():
        raise UserError(f"{path}: is missing from the checkpoint; use another tag")
    size = path.stat().st_size
    if size != recorded.size:
        raise UserError(
            f"{path}: has {size} bytes where {recorded.size} were written; use another tag"
        )
    if digest(path) != recorded:
        raise UserError(f"{path}: its bytes are not those written (CRC-32); use another tag")
