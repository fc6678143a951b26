"""manifest.json: the description of a folder of shards, beside them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from light_llm.errors import UserError
from light_llm.files import given, urls
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
MARKS = (b"fingerprint", b"vocab_size", b"bos_id", b"eos_id", b"characters", b"sha256")
"""Keys of a manifest; a file with three of them was one."""
Place = Path | str
"""A folder or file of this machine, or a URL."""
_PATHS = ("input", "hf_dataset", "tokenizer_path", "adapter_module")


def tokenizer_fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of a tokenizer's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        content = given.read_bytes(path, given.LARGE, "the tokenizer's file")
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def warn_of_change(folder: Path, known: Any, writer: str) -> None:
    """Warn of a tokenizer's folder whose files are not those that `writer` left there.

    Args:
        known: their fingerprint; None, or what is no text, says nothing.
    """
    if not isinstance(known, str):
        return
    there = None
    with contextlib.suppress(UserError, OSError):  # a folder in it, a FIFO
        there = tokenizer_fingerprint(folder)
    if there != known:
        warnings.warn(
            f"{folder}: its files are not those that {writer} left there, so texts may have other "
            "ids; put them back, or name the right tokenizer",
            stacklevel=3,
        )


def warn_of_tokenizer(folder: Path) -> None:
    """Warn of a tokenizer beside a manifest that describes another one."""
    manifest = read_manifest(folder.parent / MANIFEST) if folder.name == TOKENIZER else None
    if manifest is not None and folder.is_dir():
        warn_of_change(folder, manifest["tokenizer"].get("fingerprint"), "llm-preprocess")


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
    engines: Sequence[str],
) -> None:
    """Write folder/manifest.json; docs/preprocess.md explains its keys.

    Args:
        fingerprint: of the tokenizer, as `tokenizer_fingerprint` gives it.
        engines: the libraries that encoded, with their versions.
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
        "engines": list(engines),
        "documents": sum(row["documents"] for row in rows),
        "tokens": sum(row["tokens"] for row in rows),
        "shards": rows,
    }
    manifest["crc32"] = _checksum(manifest)
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


def read_manifest(path: Place) -> dict[str, Any] | None:
    """What `write_manifest` wrote; None if the file is something else, damaged, or not there."""
    try:
        manifest = given.parse_json(_bytes(path), str(path))
        size = manifest["tokenizer"]["vocab_size"]
        ours = manifest["format"] == FORMAT and type(size) is int and 0 < size < 2**31
        ours = ours and isinstance(manifest["shards"], list)
        ours = ours and all(is_shard_file(shard["file"]) for shard in manifest["shards"])
        ours = ours and manifest.get("crc32", _checksum(manifest)) == _checksum(manifest)
    except (UserError, TypeError, KeyError, RecursionError):
        return None
    return manifest if ours else None


def _checksum(manifest: dict[str, Any]) -> int:
    """CRC-32 of the values, however they are written, without itself."""
    values = {key: value for key, value in manifest.items() if key != "crc32"}
    return zlib.crc32(json.dumps(values, sort_keys=True).encode("utf-8", "surrogatepass"))


def _bytes(path: Place) -> bytes:
    """
    Raises:
        UserError: it cannot be read.
    """
    return given.read_bytes(path, LARGEST) if isinstance(path, Path) else _read_remote(path)


@functools.lru_cache(maxsize=64)
def _read_remote(url: str) -> bytes:
    """The bytes of a URL, as this process found them first; JSON's null where there is nothing.

    Raises:
        UserError: its store cannot be asked.
    """
    from light_llm.files import remote

    data = remote.read_small(url, LARGEST)
    return b"null" if data is None else data


def _tell_damage(path: Place) -> None:
    """Tell of a file that is no manifest, but was one or is no file of JSON.

    Without its manifest a run has another vocabulary or another end of documents. Beside shards of
    others, a manifest.json of another program is none of our business.

    Raises:
        UserError: most of a manifest is there.
    """
    try:
        data = _bytes(path)
    except UserError:
        return
    if sum(mark in data for mark in MARKS) > 2:
        raise UserError(
            f"{path}: the manifest of the shards is damaged; copy it again from where the shards "
            "come from (after a change on purpose, delete its crc32), or remove it and set what it "
            "would say: model.vocab_size and, with document_mask, model.attention.document_end"
        )
    with contextlib.suppress(UserError):
        given.parse_json(data.partition(b"\n")[0], "")  # lines of JSON are some other program's
        return
    with contextlib.suppress(UserError):
        given.parse_json(data, "")
        return
    warnings.warn(
        f"{path}: is not JSON, so nothing is known of the tokenizer of the shards; copy it again "
        "from where they come from, or remove it",
        stacklevel=2,
    )


def _outputs(shards: Place) -> Sequence[Place]:
    """Candidates for the output that the folder `shards` belongs to: OUT in OUT/train, or in
    OUT/CONFIG/train if a dataset has several configurations."""
    if isinstance(shards, Path):
        return shards.absolute().parents[:2]
    return [above := urls.parent(shards), urls.parent(above)]


def folder_of(shard: str | Path) -> Place:
    """The folder of a shard, given by its path or URL."""
    return urls.parent(str(shard)) if urls.is_url(shard) else Path(shard).parent


def tokenizer_beside(shards: Place) -> Path | None:
    """The tokenizer's folder that belongs to the shards in the folder `shards`, if any; of remote
    shards, a copy of it. A warning tells where the manifest describes another."""
    if isinstance(shards, Path):
        places = (folder / TOKENIZER for folder in (shards, *map(Path, _outputs(shards))))
        found = next((place for place in places if place.is_dir()), None)
        if found is not None:
            warn_of_tokenizer(found)
        return found
    from light_llm.files.fetched import copy_of_folder

    copies = (copy_of_folder(urls.child(str(at), TOKENIZER)) for at in (shards, *_outputs(shards)))
    return next((copy for copy in copies if copy is not None), None)


@dataclass(frozen=True)
class Listing:
    """A manifest: where it is, the shards that it lists, and its section `tokenizer`."""

    path: Place
    shards: frozenset[str]
    """Absolute paths, or URLs."""
    tokenizer: dict[str, Any]

    @property
    def vocab_size(self) -> int:
        return self.tokenizer["vocab_size"]

    def lists(self, shard: str | Path) -> bool:
        return _absolute(shard) in self.shards


def _absolute(shard: str | Path) -> str:
    return str(shard) if urls.is_url(shard) else str(Path(shard).absolute())


def _below(folder: Place, name: str) -> Place:
    return folder / name if isinstance(folder, Path) else urls.child(folder, name)


def _manifests_of(shards: Place) -> list[Listing]:
    """The manifests that may list the shards in the folder `shards`.

    Raises:
        UserError: one is damaged.
    """
    found = []
    for folder in _outputs(shards):
        manifest = read_manifest(_below(folder, MANIFEST))
        if manifest is None:
            _tell_damage(_below(folder, MANIFEST))
        else:
            files = frozenset(str(_below(folder, row["file"])) for row in manifest["shards"])
            found.append(Listing(_below(folder, MANIFEST), files, manifest["tokenizer"]))
    return found


def listings(shards: Iterable[str | Path]) -> Iterator[tuple[str, Listing]]:
    """Each shard, a path or a URL, with each manifest that lists it. A manifest is read once."""
    manifests: dict[Place, list[Listing]] = {}
    for shard in map(_absolute, shards):
        folder = folder_of(shard)
        if folder not in manifests:
            manifests[folder] = _manifests_of(folder)
        yield from ((shard, each) for each in manifests[folder] if shard in each.shards)


def manifests(shards: Iterable[str | Path]) -> list[Listing]:
    """The manifests that list at least one of the shards, in the order of the shards."""
    return list({each.path: each for _, each in listings(shards)}.values())


def vocabulary_of(paths: str | Sequence[str]) -> int | None:
    """The size of the tokenizer of the shards that a config's `train_data` names; of several the
    largest, and None where no manifest lists them."""
    named = [paths] if isinstance(paths, str) else paths
    shards = [file for path in named for file in _files(path)]
    return max((each.vocab_size for each in manifests(shards)), default=None)


def document_end_of(paths: str | Sequence[str]) -> int | None:
    """The id that ends the documents of the shards that a config's `train_data` names; None where
    no manifest lists them, their tokenizer has no end mark, or several have different ones."""
    named = [paths] if isinstance(paths, str) else paths
    shards = [file for path in named for file in _files(path)]
    ends = {each.tokenizer.get("eos_id") for each in manifests(shards)}
    end = ends.pop() if len(ends) == 1 else None
    return end if type(end) is int and 0 <= end < 2**31 else None


def _files(path: str) -> list[str]:
    if not urls.is_url(path):
        return shard_files(path)
    from light_llm.files import remote

    return remote.listed(path)


def check_vocabulary(shards: Iterable[str | Path], vocab_size: int, field: str) -> None:
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
