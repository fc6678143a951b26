"""Checkpoints on disk: where the files of a tag are, and how they are read (never written here).

    DIR/TAG.safetensors     weights, float32, PyTorch's keys
    DIR/TAG.state/          orbax: what the trainer needs besides the weights
    DIR/TAG.config.json     config snapshot, with the digests that tie the three together
    DIR/.TAG.committed/     the three on their way there, after a crash in between
    DIR/TAG.state.pt        the PyTorch trainer's optimizer state; `llm-convert` alone opens it

A prefix is DIR/TAG, with or without one of the endings.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from light_llm.configfile import Config, validate
from light_llm.errors import UserError
from light_llm.models.transformer.config import TransformerConfig

WEIGHTS, STATE, CONFIG = ".safetensors", ".state", ".config.json"
TORCH_STATE = ".state.pt"
FORMAT = 1


class Member(NamedTuple):
    """Size in bytes and CRC-32 of one file, as its config.json records them."""

    size: int
    crc32: int


class Record(Config):
    """The reserved key `checkpoint` of a config.json."""

    format: int = FORMAT
    run: str = ""  # an id that all tags of a run share
    generation: int = 0  # counts the starts of the run: 1, then one more with each resume
    step: int = 0
    files: dict[str, Member] = Field(default_factory=dict)  # by name relative to the tag


def split_prefix(prefix: str | Path) -> tuple[Path, str]:
    """DIR/TAG, with or without one of the endings -> (DIR, TAG)."""
    text = str(prefix).rstrip("/")
    for ending in (WEIGHTS, STATE, CONFIG, TORCH_STATE):
        text = text.removesuffix(ending)
    path = Path(text)
    return path.parent, path.name


def committed_dir(directory: Path, tag: str) -> Path:
    """Where a committed tag lies until it is published."""
    return directory / f".{tag}.committed"


def member(prefix: str | Path, ending: str) -> Path:
    """The file or folder of `prefix` with that ending, a committed staging copy first."""
    directory, tag = split_prefix(prefix)
    staged = committed_dir(directory, tag) / f"{tag}{ending}"
    return staged if staged.exists() else directory / f"{tag}{ending}"


def tags(directory: Path) -> list[str]:
    """The complete tags of a directory, sorted by name."""
    if not directory.is_dir():
        return []
    published = {path.name.removesuffix(CONFIG) for path in directory.glob(f"*{CONFIG}")}
    staged = {
        path.name.removeprefix(".").removesuffix(".committed")
        for path in directory.glob(".*.committed")
    }
    return sorted(tag for tag in published | staged if weights_there(directory / tag))


def weights_there(prefix: str | Path) -> bool:
    return member(prefix, WEIGHTS).is_file() and member(prefix, CONFIG).is_file()


def weights_file(path_or_prefix: str | Path) -> Path:
    """The .safetensors file of a path or prefix.

    Raises:
        UserError: there is none; lists the tags that are there.
    """
    path = member(path_or_prefix, WEIGHTS)
    if not path.is_file():
        raise missing(path_or_prefix)
    return path


def missing(prefix: str | Path) -> UserError:
    """The error for a checkpoint that is not there, naming those that are."""
    directory, tag = split_prefix(prefix)
    there = tags(directory)
    if tag and member(prefix, CONFIG).is_file():
        remedy = f"{member(prefix, WEIGHTS)} is missing beside its {CONFIG}"
    elif inside := tags(directory / tag):
        remedy = f"it is a folder; add one of its tags: {', '.join(inside)}"
    elif not directory.is_dir():
        remedy = f"there is no folder {directory}"
    elif there:
        remedy = f"{directory} has {', '.join(there)}"
    else:
        remedy = f"{directory} holds no checkpoint"
    return UserError(f"{prefix}: there is no checkpoint {tag!r} ({remedy})")


def read_config(prefix: str | Path) -> dict[str, Any]:
    """The whole of the prefix's config.json, with the reserved key `checkpoint` if it is there."""
    path = member(prefix, CONFIG)
    if not path.is_file():
        if member(prefix, WEIGHTS).is_file():
            raise UserError(
                f"{path}: the weights have no config beside them; copy the checkpoint's "
                f"{CONFIG} there"
            )
        raise missing(prefix)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable config: {error}; use another tag") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: must hold a JSON object; use another tag")
    return data


def read_record(prefix: str | Path) -> Record | None:
    """What config.json says of the checkpoint itself; None where another trainer wrote it.

    Raises:
        UserError: the record is not one, or of another format.
    """
    record = read_config(prefix).get("checkpoint")
    if record is None:
        return None
    source = f"{member(prefix, CONFIG)}: checkpoint"
    if not isinstance(record, dict):
        raise UserError(f"{source} must be an object; use another tag")
    valid = validate(Record, record, source)
    if valid.format != FORMAT:
        raise UserError(
            f"{prefix}: is of checkpoint format {valid.format}, and this version reads {FORMAT}; "
            "use the version that wrote it"
        )
    return valid


def read_snapshot(prefix: str | Path) -> dict[str, Any]:
    """The config that the checkpoint was trained with, as its config.json holds it."""
    return {key: value for key, value in read_config(prefix).items() if key != "checkpoint"}


def read_model_config(prefix: str | Path) -> TransformerConfig:
    """The `model` section of the checkpoint's config snapshot."""
    model = read_snapshot(prefix).get("model")
    path = member(prefix, CONFIG)
    if not isinstance(model, dict):
        raise UserError(f"{path}: has no section 'model'; it is no config of a checkpoint")
    return validate(TransformerConfig, model, f"{path}: model")


def digest(path: Path) -> Member:
    """Size and CRC-32 of one file's bytes."""
    crc, size = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    return Member(size, crc)


def verify(prefix: str | Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Compare files with the digests of config.json, before anything is parsed.

    Args:
        wanted: chooses files by name relative to the tag: `.safetensors`, `.state/_METADATA`, …

    Raises:
        UserError: a file is missing, cut short or changed. A config without digests (as the
            PyTorch trainer writes it) has nothing to compare with and passes.
    """
    record = read_record(prefix)
    for name, member_ in record.files.items() if record else ():
        if wanted(name):
            _verify_file(_path_of(prefix, name), member_)


def _path_of(prefix: str | Path, name: str) -> Path:
    ending, _, inner = name.partition("/")
    if ending not in (WEIGHTS, STATE) or ".." in Path(inner).parts or Path(inner).is_absolute():
        raise UserError(
            f"{member(prefix, CONFIG)}: checkpoint.files names {name!r}, which is no file of a "
            "checkpoint; use another tag"
        )
    path = member(prefix, ending)
    return path / inner if inner else path


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
