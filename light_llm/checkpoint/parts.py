"""The weights of a tag: one safetensors file, or parts with an index, as Hugging Face has them.

    DIR/TAG.safetensors                    all tensors, or
    DIR/TAG-00001-of-00003.safetensors …   some of them each, and
    DIR/TAG.safetensors.index.json         which part has which tensor

A tag can have an average of its weights beside them, in the same forms, as if its tag were TAG.ema.

This file alone knows those names and what an index says. The path of the weights is that of the
file, or of the index. A run that publishes a tag moves the index last, so parts are looked for
beside it and, where it is in the run's staging folder, in the folder above that as well.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from light_llm.errors import UserError
from light_llm.files import given

WEIGHTS, INDEX = ".safetensors", ".safetensors.index.json"
AVERAGE = ".ema"
"""What stands between a tag and the endings of its average."""
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
MOST = 99_999
"""Parts of one tag: their numbers have five digits."""

_NUMBERS = r"-(\d{5})-of-(\d{5})"
_PART = re.compile(rf"(?s:(.+)){_NUMBERS}{re.escape(WEIGHTS)}")
_ENDING = re.compile(rf"(?:{_NUMBERS})?{re.escape(WEIGHTS)}")


class Seen(NamedTuple):
    """A part as it lay at one look: another save has another one."""

    path: Path
    inode: int
    changed: int  # nanoseconds


class Index(NamedTuple):
    """What an index says."""

    places: dict[str, str]  # the name of the part of each tensor
    total_size: int  # bytes of all tensors

    @property
    def names(self) -> list[str]:
        return sorted(set(self.places.values()))


def is_index(path: Path) -> bool:
    return path.name.endswith(INDEX)


def is_weights(ending: str) -> bool:
    """Whether a file of a tag, by its name without the tag, holds tensors of its weights."""
    return _ENDING.fullmatch(ending) is not None


def is_average(ending: str) -> bool:
    """The same for the average of its weights."""
    return ending.startswith(AVERAGE) and is_weights(ending.removeprefix(AVERAGE))


def tag_of_file(name: str) -> str | None:
    """The tag that a file belongs to whose name is that of weights; else None."""
    if part := _PART.fullmatch(name):
        return part[1]
    ending = next((ending for ending in (INDEX, WEIGHTS) if name.endswith(ending)), name)
    return name.removesuffix(ending) or None


def whole_of_part(path: Path) -> Path | None:
    """The index that a file needs which is named as a part; None if it is none."""
    part = _PART.fullmatch(path.name)
    return part and path.with_name(f"{part[1]}{INDEX}")


def part_name(tag: str, number: int, count: int) -> str:
    return f"{tag}-{number:05d}-of-{count:05d}{WEIGHTS}"


def files_there(directory: Path, tag: str) -> list[Path]:
    """All files there that belong to the weights of a tag, in whichever form, the index first."""
    names = {f"{tag}{WEIGHTS}", f"{tag}{INDEX}"}
    with os.scandir(directory) as entries:
        there = [e.name for e in entries if e.name in names or _is_part(e.name, tag)]
    return [directory / name for name in sorted(there, key=lambda n: (not n.endswith(INDEX), n))]


def _is_part(name: str, tag: str) -> bool:
    part = _PART.fullmatch(name)
    return part is not None and part[1] == tag


def find(directory: Path, staging: Path, tag: str) -> tuple[Path, tuple[Path, ...]]:
    """(the path of a tag's weights, all its parts there); a staged form goes first.

    Where there are none, the path is that of a single file.
    """
    for folder in (staging, directory):
        for ending in (WEIGHTS, INDEX):
            path = folder / f"{tag}{ending}"
            if path.exists():
                return path, _parts(directory, staging, tag) if ending == INDEX else ()
    return directory / f"{tag}{WEIGHTS}", ()


def _parts(directory: Path, staging: Path, tag: str) -> tuple[Path, ...]:
    there: dict[str, Path] = {}
    for folder in (directory, staging):
        if folder.is_dir():
            parts = [path for path in files_there(folder, tag) if _is_part(path.name, tag)]
            there |= {path.name: path for path in parts}
    return tuple(there[name] for name in sorted(there))


def look(paths: Iterable[Path]) -> tuple[Seen, ...]:
    """The parts as they lie now; one that is gone since is left out."""
    found = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            continue
        found.append(Seen(path, stat.st_ino, stat.st_mtime_ns))
    return tuple(found)


def place(weights: Path, name: str) -> Path:
    """Where a file of the weights is: beside them, or where a run that publishes moved it."""
    path = weights.with_name(name)
    tag = tag_of_file(weights.name) or ""
    staged = weights.parent.name in (f".{tag}.committed", f".{tag.removesuffix(AVERAGE)}.committed")
    if staged and not path.exists():
        return weights.parent.parent / name
    return path


def read_index(path: Path) -> Index:
    """What an index says. Its parts are named for its tag and lie in its folder.

    Raises:
        UserError: it cannot be read, or does not name all parts of one tag.
    """
    index = given.read_json(path, given.LARGE, "the index of the weights")
    places = index.get("weight_map") if isinstance(index, dict) else None
    metadata = index.get("metadata") if isinstance(index, dict) else None
    size = metadata.get("total_size") if isinstance(metadata, dict) else None
    named = isinstance(places, dict) and all(isinstance(name, str) for name in places.values())
    if not places or not named or type(size) is not int:
        raise UserError(
            f"{path}: an index must give the part of each tensor (weight_map) and the bytes of all "
            "(metadata.total_size); use another tag"
        )
    tag, names = path.name.removesuffix(INDEX), set(places.values())
    wanted = {part_name(tag, number, len(names)) for number in range(1, len(names) + 1)}
    if names != wanted:
        strange = [name for name in names if not _is_part(name, tag)]
        odd = sorted(strange or names - wanted)
        raise UserError(
            f"{path}: weight_map names {odd[0]!r}, and the {len(names)} parts of {tag!r} are "
            f"{part_name(tag, 1, len(names))} and so on, in the same folder; use another tag"
        )
    return Index(places, size)


def index_text(places: Mapping[str, str], total_size: int) -> str:
    """An index as transformers writes it."""
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(places)}
    return json.dumps(index, indent=2) + "\n"


def index_for(index: Path, other: str) -> str:
    """The text of an index for the same parts under the names of another tag."""
    tag, found = index.name.removesuffix(INDEX), read_index(index)
    places = {key: other + name.removeprefix(tag) for key, name in found.places.items()}
    return index_text(places, found.total_size)


def plan(tag: str, sizes: Mapping[str, int], most: int) -> dict[str, list[str]]:
    """The tensors of each file to write, in the order given; one file if they fit into it.

    Args:
        sizes: bytes of each tensor.
        most: bytes of tensors in a file; a larger tensor has a file of its own.
    """
    groups: list[list[str]] = []
    room = 0
    for key, size in sizes.items():
        if not groups or size > room:
            groups.append([])
            room = most
        groups[-1].append(key)
        room -= size
    if len(groups) == 1:
        return {f"{tag}{WEIGHTS}": groups[0]}
    if len(groups) > MOST:
        raise UserError(
            f"the weights would be {len(groups):,} files, and their numbers have five digits; "
            "raise max_shard_size"
        )
    names = [part_name(tag, number, len(groups)) for number in range(1, len(groups) + 1)]
    return dict(zip(names, groups, strict=True))


def parse_size(text: str) -> int:
    """`5GB` as bytes.

    Raises:
        ValueError: it is not a positive number with a unit.
    """
    text = text.strip()
    try:
        size = float(text[:-2]) * UNITS[text[-2:].upper()]
        if not 1 <= size < 2**63:
            raise ValueError
    except (KeyError, ValueError):
        raise ValueError("must be a positive number with KB, MB, GB or TB, such as 5GB") from None
    return int(size)
