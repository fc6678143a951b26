"""manifest.json: the description of a folder of shards, beside them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from light_llm.errors import UserError
from light_llm.files import given
from light_llm.files.disk import create
from light_llm.files.shards import shard_files
from light_llm.preprocess.shards import Shard, is_shard_file
from light_llm.tokenizer import Tokenizer

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
"""The folder beside the manifest that holds the tokenizer of its shards."""
FORMAT = 1
WRITERS = ("pyarrow", "tokenizers")
LARGEST = 64 * 2**20
"""Bytes of a manifest: a quarter of a million shards."""
_PATHS = ("input", "hf_dataset", "tokenizer_path", "adapter_module")


def tokenizer_fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of a tokenizer's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        content = given.read_bytes(path, given.LARGE, "the tokenizer's file")
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """The versions of the libraries that the shards' bytes depend on."""
    return {name: version(name) for name in WRITERS}


def write_manifest(
    folder: Path,
    options: dict[str, Any],
    sources: dict[str, Any],
    tokenizer: Tokenizer,
    fingerprint: str,
    shards: Iterable[Shard],
) -> None:
    """Write folder/manifest.json; docs/preprocess.md explains its keys.

    Args:
        fingerprint: of the tokenizer, as `tokenizer_fingerprint` gives it.
    """
    rows = [asdict(shard) for shard in shards]
    manifest = {
        "format": FORMAT,
        "tokenizer": {
            "folder": TOKENIZER,
            "fingerprint": fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
        },
        "options": _shareable(options),
        "sources": sources,
        "versions": versions(),
        "documents": sum(row["documents"] for row in rows),
        "tokens": sum(row["tokens"] for row in rows),
        "shards": rows,
    }
    with create(folder / MANIFEST) as file:
        file.write((json.dumps(manifest, indent=2) + "\n").encode())


def _shareable(options: dict[str, Any]) -> dict[str, Any]:
    """The options, with paths below the working directory relative to it and those below the home
    folder with `~`: a manifest is published with its shards, and should not show where this machine
    keeps its files."""
    home = os.path.expanduser("~").rstrip("/")

    def relative(value: Any) -> Any:
        if isinstance(value, str):
            value = value.removeprefix(f"{Path.cwd()}/") or value
            return f"~{value.removeprefix(home)}" if value.startswith(f"{home}/") else value
        return [relative(each) for each in value] if isinstance(value, list) else value

    return {key: relative(value) if key in _PATHS else value for key, value in options.items()}


def read_manifest(path: Path) -> dict[str, Any] | None:
    """What `write_manifest` wrote; None if the file is something else, or not there."""
    try:
        manifest = given.read_json(path, LARGEST)
        size = manifest["tokenizer"]["vocab_size"]
        ours = manifest["format"] == FORMAT and type(size) is int and 0 < size < 2**31
        ours = ours and isinstance(manifest["shards"], list)
        ours = ours and all(is_shard_file(shard["file"]) for shard in manifest["shards"])
    except (UserError, TypeError, KeyError):
        return None
    return manifest if ours else None


def _outputs(shards: Path) -> Sequence[Path]:
    """Candidates for the output that the folder `shards` belongs to: OUT in OUT/train, or in
    OUT/CONFIG/train if a dataset has several configurations."""
    return shards.absolute().parents[:2]


def tokenizer_beside(shards: Path) -> Path | None:
    """The tokenizer's folder that belongs to the shards in the folder `shards`, if any."""
    places = (folder / TOKENIZER for folder in (shards, *_outputs(shards)))
    return next((place for place in places if place.is_dir()), None)


@dataclass(frozen=True)
class Listing:
    """A manifest: where it is, the shards that it lists, and its section `tokenizer`."""

    path: Path
    shards: frozenset[Path]
    tokenizer: dict[str, Any]

    @property
    def vocab_size(self) -> int:
        return self.tokenizer["vocab_size"]


def _manifests_of(shards: Path) -> list[Listing]:
    """The manifests that may list the shards in the folder `shards`."""
    found = []
    for folder in _outputs(shards):
        manifest = read_manifest(folder / MANIFEST)
        if manifest is not None:
            files = frozenset(folder / row["file"] for row in manifest["shards"])
            found.append(Listing(folder / MANIFEST, files, manifest["tokenizer"]))
    return found


def listings(shards: Iterable[Path]) -> Iterator[tuple[Path, Listing]]:
    """Each shard with each manifest that lists it. A manifest is read once."""
    manifests: dict[Path, list[Listing]] = {}
    for shard in map(Path.absolute, shards):
        if shard.parent not in manifests:
            manifests[shard.parent] = _manifests_of(shard.parent)
        yield from ((shard, each) for each in manifests[shard.parent] if shard in each.shards)


def manifests(shards: Iterable[Path]) -> list[Listing]:
    """The manifests that list at least one of the shards, in the order of the shards."""
    return list({each.path: each for _, each in listings(shards)}.values())


def vocabulary_of(paths: str | Sequence[str]) -> int | None:
    """The size of the tokenizer of the shards that a config's `train_data` names; of several the
    largest, and None where no manifest lists them."""
    named = [paths] if isinstance(paths, str) else paths
    shards = [Path(file) for path in named for file in shard_files(path)]
    return max((each.vocab_size for each in manifests(shards)), default=None)


def check_vocabulary(shards: Iterable[Path], vocab_size: int, field: str) -> None:
    """
    Raises:
        UserError: a shard was written with a tokenizer of more than `vocab_size` ids.
    """
    for shard, manifest in listings(shards):
        if manifest.vocab_size > vocab_size:
            raise UserError(
                f"{field}: {shard} was written with a tokenizer of {manifest.vocab_size} ids "
                f"({manifest.path}), and model.vocab_size={vocab_size}; set model.vocab_size to "
                f"{manifest.vocab_size} or more"
            )
