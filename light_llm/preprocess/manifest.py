"""manifest.json: the description of a folder of shards, beside them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from light_llm.errors import UserError
from light_llm.files import checksum, given
from light_llm.files.disk import create
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
    duplicates: int,
) -> None:
    """Write folder/manifest.json; docs/preprocess.md explains its keys.

    Args:
        fingerprint: of the tokenizer, as `tokenizer_fingerprint` gives it.
        engines: the libraries that encoded, with their versions.
        duplicates: documents whose text an earlier one has.
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
        "options": shareable(options),
        "sources": sources,
        "versions": versions(),
        "engines": list(engines),
        "documents": sum(row["documents"] for row in rows),
        "tokens": sum(row["tokens"] for row in rows),
        "duplicates": duplicates,
        "shards": rows,
    }
    manifest["crc32"] = _checksum(manifest)
    with create(folder / MANIFEST) as file:
        file.write((json.dumps(manifest, indent=2) + "\n").encode())


def shareable(options: dict[str, Any]) -> dict[str, Any]:
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
        ours = ours and ("crc32" not in manifest or _is_sealed(manifest))
    except (UserError, TypeError, KeyError, RecursionError):
        return None
    return manifest if ours else None


def _checksum(manifest: dict[str, Any]) -> int:
    """Of the values, without itself."""
    return checksum.of_json({key: value for key, value in manifest.items() if key != "crc32"})


def _is_sealed(manifest: dict[str, Any]) -> bool:
    return "crc32" in manifest and manifest["crc32"] == _checksum(manifest)


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


def tell_damage(path: Place) -> None:
    """Tell of a file that is no manifest, but was one or is no file of JSON.

    Without its manifest a run has another vocabulary or another end of documents. Beside shards of
    others, a manifest.json of another program is none of our business.

    Raises:
        UserError: most of a manifest is there, or it is one of another version.
    """
    try:
        data = _bytes(path)
    except UserError:
        return
    whole = None
    with contextlib.suppress(UserError):
        whole = given.parse_json(data, "")
    if isinstance(whole, dict):
        was_one = "crc32" in whole or whole.keys() >= {"format", "tokenizer", "shards"}
        number = whole.get("format")
        if was_one and type(number) is int and number > FORMAT and _is_sealed(whole):
            raise UserError(
                f"{path}: has manifest format {number}, and this version reads {FORMAT}; use the "
                "version of light-llm-jax that wrote it"
            )
    else:
        was_one = sum(mark in data for mark in MARKS) > 2
    if was_one:
        raise UserError(
            f"{path}: the manifest of the shards is damaged; copy it again from where the shards "
            "come from (after a change on purpose, delete its crc32), or remove it and set what it "
            "would say: model.vocab_size and, with document_mask, model.attention.document_end"
        )
    with contextlib.suppress(UserError):
        given.parse_json(data.partition(b"\n")[0], "")  # lines of JSON are some other program's
        return
    if whole is not None or data.strip() == b"null":
        return
    warnings.warn(
        f"{path}: is not JSON, so nothing is known of the tokenizer of the shards; copy it again "
        "from where they come from, or remove it",
        stacklevel=2,
    )
