"""Which manifests list given shards, and what they say of their tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from light_llm.errors import UserError
from light_llm.files import urls
from light_llm.files.shards import shard_files
from light_llm.preprocess.manifest import (
    MANIFEST,
    TOKENIZER,
    Place,
    read_manifest,
    tell_damage,
    warn_of_tokenizer,
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
            tell_damage(_below(folder, MANIFEST))
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
