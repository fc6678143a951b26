"""Checkpoints on disk: where the files of a tag are (nothing is written here).

    DIR/TAG.safetensors     weights, float32, PyTorch's keys; or parts (light_llm.checkpoint.parts)
    DIR/TAG.ema.safetensors their average, with ema_decay; or parts
    DIR/TAG.state/          orbax: what the trainer needs besides the weights
    DIR/TAG.config.json     config snapshot, with the digests that tie the three together
    DIR/.TAG.committed/     the three before they are published, after a crash in between
    DIR/TAG.state.pt        the PyTorch trainer's optimizer state; only `llm-convert` opens it

A prefix is DIR/TAG, with or without one of the endings, or the folder of a Hugging Face model. A
reader turns it once into a value, `Files` or `Checkpoint` (reading.py), and passes that on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from light_llm.checkpoint import parts
from light_llm.checkpoint.folder import CONFIG_JSON, is_model_folder
from light_llm.checkpoint.parts import AVERAGE, INDEX, WEIGHTS
from light_llm.errors import UserError
from light_llm.files.foreign import foreign_file, foreign_folder

STATE, CONFIG = ".state", ".config.json"
TORCH_STATE = ".state.pt"


@dataclass(frozen=True)
class Files:
    """Where the members of a tag are, found in one look; each may be there or not."""

    prefix: Path  # DIR/TAG
    weights: Path  # the file, or the index of its parts; a Hugging Face folder itself
    state: Path
    config: Path
    parts: tuple[parts.Seen, ...] = ()
    """Of the weights, where there are some, as they lay at the look."""
    average: Files | None = None
    """Of the average of the weights, as if DIR/TAG.ema were a tag with the config of this one."""

    @property
    def directory(self) -> Path:
        return self.prefix.parent

    @property
    def tag(self) -> str:
        return self.prefix.name

    @property
    def torch_state(self) -> Path:
        """Always beside the others, never in a staging folder."""
        return self.prefix.with_name(f"{self.tag}{TORCH_STATE}")

    @property
    def is_average(self) -> bool:
        """Whether the weights are the average of those of another tag, whose config this is."""
        of = self.tag.removesuffix(AVERAGE)
        return of != self.tag and self.config.name == f"{of}{CONFIG}"

    @property
    def complete(self) -> bool:
        """Whether weights and config are there."""
        return bool(self.tag) and self.weights.is_file() and self.config.is_file()


def locate(prefix: str | Path) -> Files:
    """The files of DIR/TAG, with or without one of the endings; a committed copy goes first."""
    text = str(prefix).rstrip("/")
    for ending in (INDEX, WEIGHTS, STATE, CONFIG, TORCH_STATE):
        text = text.removesuffix(ending)
    path = Path(text)
    directory, tag = path.parent, path.name
    whole = parts.tag_of_file(f"{tag}{WEIGHTS}")
    if whole != tag and whole is not None and (directory / f"{whole}{INDEX}").exists():
        path, tag = directory / whole, whole  # the name of a part
    of = tag.removesuffix(AVERAGE)
    if of and of != tag and (average := locate(directory / of).average) is not None:
        return average
    staging = committed_dir(directory, tag)
    weights, there = parts.find(directory, staging, tag)

    def member(ending: str) -> Path:
        staged = staging / f"{tag}{ending}"
        return staged if staged.exists() else directory / f"{tag}{ending}"

    files = Files(path, weights, member(STATE), member(CONFIG), parts.look(there))
    return replace(files, average=_average(files, staging))


def _average(files: Files, staging: Path) -> Files | None:
    """The average of a tag's weights; None without one, or where it has a config of its own."""
    if not files.tag:
        return None
    path = files.prefix.with_name(f"{files.tag}{AVERAGE}")
    weights, there = parts.find(path.parent, staging, path.name)
    if not weights.exists() or path.with_name(f"{path.name}{CONFIG}").exists():
        return None
    state = path.with_name(f"{path.name}{STATE}")  # there is none
    return Files(path, weights, state, files.config, parts.look(there))


def published(directory: Path, tag: str) -> list[Path]:
    """What belongs to a tag in its folder, whole or not: files, folders or links, the index of its
    weights first."""
    members = [directory / f"{tag}{ending}" for ending in (STATE, CONFIG, TORCH_STATE)]
    there = [path for path in members if os.path.lexists(path)]
    return [*parts.files_there(directory, tag), *average_there(directory, tag), *there]


def average_there(directory: Path, tag: str) -> list[Path]:
    """All files there of the average of a tag's weights; none where TAG.ema is a tag of its own."""
    name = f"{tag}{AVERAGE}"
    if os.path.lexists(directory / f"{name}{CONFIG}"):
        return []
    return parts.files_there(directory, name)


def tag_of_file(name: str) -> str | None:
    """The tag that a file or folder belongs to that has such a name; None if it is no member."""
    if (tag := parts.tag_of_file(name)) is not None:
        return tag.removesuffix(AVERAGE) or None
    ending = next((ending for ending in (CONFIG, STATE) if name.endswith(ending)), name)
    return name.removesuffix(ending) or None


def locate_weights(prefix: str | Path) -> Files:
    """The files of a prefix or a .safetensors file, which needs no config.json beside it, or a
    Hugging Face folder.

    Raises:
        UserError: there are no weights; lists the tags that are there.
    """
    files, folder = locate(prefix), Path(prefix)
    if files.weights.is_file() and not str(prefix).endswith("/"):
        return files
    if is_model_folder(folder):
        return replace(files, weights=folder, config=folder / CONFIG_JSON)
    if files.weights.is_file():
        return files
    raise missing(prefix)


def committed_dir(directory: Path, tag: str) -> Path:
    """Where a committed tag lies until it is published."""
    return directory / f".{tag}.committed"


def tags(directory: Path) -> list[str]:
    """The complete tags of a directory, sorted by name."""
    if not directory.is_dir():
        return []
    published = {path.name.removesuffix(CONFIG) for path in directory.glob(f"*{CONFIG}")}
    staged = {
        path.name.removeprefix(".").removesuffix(".committed")
        for path in directory.glob(".*.committed")
    }
    return sorted(tag for tag in published | staged if locate(directory / tag).complete)


def missing(prefix: str | Path) -> UserError:
    """The error for a checkpoint that is not there, naming those that are."""
    files = locate(prefix)
    directory, tag = files.directory, files.tag
    there = tags(directory)
    if tag and files.config.is_file():
        remedy = f"{files.weights} is missing beside its {CONFIG}"
    elif is_model_folder(Path(prefix)):
        remedy = "it is a Hugging Face model, without a state to resume; start from it by init_from"
    elif inside := tags(directory / tag):
        remedy = f"it is a folder; add one of its tags: {', '.join(inside)}"
    elif Path(prefix).is_file():
        kind = foreign_file(Path(prefix))
        remedy = f"it is {kind or f'a file that does not end in {WEIGHTS}'}"
    elif Path(prefix).is_dir():
        remedy = f"it is a folder that holds {foreign_folder(Path(prefix)) or 'no checkpoint'}"
    elif not directory.is_dir():
        remedy = f"there is no folder {directory}"
    elif there:
        remedy = f"{directory} has {', '.join(there)}"
    else:
        remedy = f"{directory} holds no checkpoint"
    return UserError(f"{prefix}: there is no checkpoint {tag!r} ({remedy})")
