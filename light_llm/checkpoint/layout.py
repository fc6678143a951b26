"""Checkpoints on disk: where the files of a tag are, and how they are read (never written here).

    DIR/TAG.safetensors     weights, float32, PyTorch's keys; or parts (light_llm.checkpoint.parts)
    DIR/TAG.ema.safetensors their average, with ema_decay; or parts
    DIR/TAG.state/          orbax: what the trainer needs besides the weights
    DIR/TAG.config.json     config snapshot, with the digests that tie the three together
    DIR/.TAG.committed/     the three before they are published, after a crash in between
    DIR/TAG.state.pt        the PyTorch trainer's optimizer state; only `llm-convert` opens it

A prefix is DIR/TAG, with or without one of the endings, or the folder of a Hugging Face model. A
reader turns it once into a value, `Files` or `Checkpoint`, and passes that on.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import Field

from light_llm.checkpoint import parts
from light_llm.checkpoint.folder import CONFIG_JSON, SINGLE, folder_snapshot, is_model_folder
from light_llm.checkpoint.parts import AVERAGE, INDEX, WEIGHTS
from light_llm.configcheck import validate
from light_llm.configfile import Config
from light_llm.errors import UserError
from light_llm.files import given
from light_llm.models.transformer.config import TransformerConfig

STATE, CONFIG = ".state", ".config.json"
TORCH_STATE = ".state.pt"
FORMAT = 1

Seen = TypeVar("Seen")
Result = TypeVar("Result")


class Member(NamedTuple):
    """Size in bytes and CRC-32 of one file, as its config.json records them."""

    size: int
    crc32: int


MOST_STARTS = 2**30


class Record(Config):
    """The reserved key `checkpoint` of a config.json."""

    format: int = FORMAT
    run: str = ""  # an id that all tags of a run share
    generation: Annotated[int, Field(ge=0, lt=MOST_STARTS)] = 0
    """Counts the starts of the run: 1, then one more with each resume."""
    step: Annotated[int, Field(ge=0, lt=2**31)] = 0
    val_loss: float | None = None
    """Mean loss over the validation tokens after `step`; None where that was not evaluated."""
    files: dict[str, Member] = Field(default_factory=dict)  # by name relative to the tag


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


@dataclass(frozen=True)
class Checkpoint:
    """A tag whose config.json was read, once.

    Its files can move: before they are read, a run may publish the tag (they leave the staging
    folder), replace it or delete it. A reader beside a run uses `steadily`, which looks again. A
    writer looks while it holds the directory's lock.
    """

    files: Files
    snapshot: Mapping[str, Any]  # the config that it was trained with
    record: Record | None  # None where another trainer wrote it

    @property
    def step(self) -> int | None:
        return None if self.record is None else self.record.step


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
    average = parts.files_there(directory, f"{tag}{AVERAGE}")
    return [*parts.files_there(directory, tag), *average, *there]


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


def tag_of(prefix: str | Path) -> Path:
    """DIR/TAG of a prefix. Of a run's folder: its best, else its final, else its newest tag.

    What is neither is returned as it is, and refused by whoever reads it.
    """
    folder = Path(prefix)
    if locate(prefix).complete or not folder.is_dir():
        return locate(prefix).prefix
    there = tags(folder)
    for tag in ("best", "final"):
        if tag in there:
            return folder / tag
    ages: dict[tuple[int, int, str], str] = {}
    for tag in there:
        with contextlib.suppress(UserError):  # damaged
            record = read_checkpoint(folder / tag).record or Record()
            ages[record.generation, record.step, tag] = tag
    return folder / ages[max(ages)] if ages else folder


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
        kind = given.foreign_weights(Path(prefix))
        remedy = f"it is {kind or f'a file that does not end in {WEIGHTS}'}"
    elif not directory.is_dir():
        remedy = f"there is no folder {directory}"
    elif there:
        remedy = f"{directory} has {', '.join(there)}"
    else:
        remedy = f"{directory} holds no checkpoint"
    return UserError(f"{prefix}: there is no checkpoint {tag!r} ({remedy})")


def read_checkpoint(prefix: str | Path) -> Checkpoint:
    """Find the files of a prefix and read its config.json.

    Raises:
        UserError: no such checkpoint, no config.json, or one that is damaged or has another format.
    """
    files = locate_weights(prefix)
    if files.weights.is_dir():
        return Checkpoint(files, folder_snapshot(files.weights), None)
    if not files.config.is_file():
        if f"{files.tag}{WEIGHTS}" == SINGLE and is_model_folder(files.directory):
            raise UserError(
                f"{files.weights}: is a file of a Hugging Face model; name its folder, "
                f"{files.directory}"
            )
        raise UserError(
            f"{files.config}: the weights have no config beside them; copy the checkpoint's "
            f"{CONFIG} there"
        )
    try:
        config = given.read_json(files.config)
    except UserError as error:
        raise UserError(f"{error}\n(not a readable config; use another tag)") from None
    if not isinstance(config, dict):
        raise UserError(f"{files.config}: must hold a JSON object; use another tag")
    record = config.pop("checkpoint", None)
    if record is None:
        return Checkpoint(files, config, None)
    source = f"{files.config}: checkpoint"
    if not isinstance(record, dict):
        raise UserError(f"{source} must be an object; use another tag")
    valid = validate(Record, record, source)
    if valid.format != FORMAT:
        raise UserError(
            f"{prefix}: has checkpoint format {valid.format}, and this version reads {FORMAT}; "
            "use the version that wrote it"
        )
    return Checkpoint(files, config, _of_average(valid, files) if files.is_average else valid)


def averaged(checkpoint: Checkpoint) -> Checkpoint | None:
    """The average of a checkpoint's weights, as a checkpoint with weights alone; None without one.

    Raises:
        UserError: there is a file that its config.json does not record.
    """
    files, record = checkpoint.files.average, checkpoint.record
    if files is None:
        return None
    return Checkpoint(files, checkpoint.snapshot, record and _of_average(record, files))


def _of_average(record: Record, files: Files) -> Record:
    """What a tag's record says of the average of its weights, by names relative to TAG.ema."""
    of_it = {
        name.removeprefix(AVERAGE): member
        for name, member in record.files.items()
        if parts.is_average(name)
    }
    if record.files and not of_it:
        raise UserError(
            f"{files.weights}: does not belong to this checkpoint: {files.config.name} records no "
            "average of its weights; delete it, or use another tag"
        )
    return record.model_copy(update={"files": of_it, "val_loss": None})


def read_own(prefix: str | Path) -> Checkpoint:
    """`read_checkpoint` for what reads one weights file under our keys.

    Raises:
        UserError: `prefix` is the folder of a Hugging Face model too.
    """
    checkpoint = read_checkpoint(prefix)
    if checkpoint.files.weights.is_dir():
        raise UserError(
            f"{prefix}: is the folder of a Hugging Face model, which has other keys; run "
            f"`llm-convert from-hf {shlex.quote(str(prefix))} NAME` first, and give NAME here"
        )
    return checkpoint


def steadily(look: Callable[[], Seen], read: Callable[[Seen], Result]) -> Result:
    """`read` what `look` sees; if that fails and another look sees a change, read again.

    Weights in parts are read again too where they were replaced meanwhile: one part could be of the
    old save and the next of the new one.

    For readers without the directory's lock, beside a run that saves.
    """
    seen = look()
    while True:
        try:
            result = read(seen)
        except (OSError, UserError):
            again = look()
            if again == seen:
                raise
        else:
            before = _parts_of(seen)
            if parts.look(part.path for part in before) == before:
                return result
            again = look()
        seen = again


def _parts_of(seen: Any) -> tuple[parts.Seen, ...]:
    """The parts that `Files`, or what has them (a checkpoint, a tag), saw."""
    seen = getattr(seen, "checkpoint", seen)
    files = getattr(seen, "files", seen)
    return files.parts if isinstance(files, Files) else ()


def model_config(checkpoint: Checkpoint) -> TransformerConfig:
    """The `model` section of the checkpoint's config snapshot."""
    model, path = checkpoint.snapshot.get("model"), checkpoint.files.config
    if not isinstance(model, dict):
        raise UserError(f"{path}: has no section 'model', so it is not a checkpoint's config")
    return validate(TransformerConfig, model, f"{path}: model")
