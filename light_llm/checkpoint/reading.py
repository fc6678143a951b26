"""What the config.json of a checkpoint says, and how its files are read beside a run that saves."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import Field

from light_llm.checkpoint import parts
from light_llm.checkpoint.folder import SINGLE, folder_snapshot, is_model_folder
from light_llm.checkpoint.layout import CONFIG, Files, locate, locate_weights, tags
from light_llm.checkpoint.parts import AVERAGE, WEIGHTS
from light_llm.configcheck import validate
from light_llm.configfile import Config
from light_llm.errors import UserError
from light_llm.files import checksum, given
from light_llm.models.transformer.config import TransformerConfig

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
    tokenizer: str | None = None
    """The fingerprint of DIR/tokenizer, the run's copy; None without one."""
    crc32: int | None = None
    """Of the config.json itself, by `seal`; None where an older version wrote it."""


PATHS = frozenset(("train_data", "val_data", "tokenizer_path", "init_from", "checkpoint_dir"))
"""Keys that may be changed by whoever moves a checkpoint or gives it away."""


def seal(config: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a config.json, its record included, with its own checksum in that record."""
    return config | {"checkpoint": config["checkpoint"] | {"crc32": _checksum(config)}}


def _checksum(config: Mapping[str, Any]) -> int:
    """CRC-32 of the values, however they are written, without paths and without itself."""
    record = {key: value for key, value in config["checkpoint"].items() if key != "crc32"}
    values = {key: value for key, value in config.items() if key not in PATHS}
    try:
        return checksum.of_json(values | {"checkpoint": record})
    except RecursionError:  # no config of a run nests so deep
        return -1


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
    if valid.crc32 is not None and _checksum(config | {"checkpoint": record}) != valid.crc32:
        raise UserError(
            f"{files.config}: is not as it was written (CRC-32); use another tag. If you changed "
            "it on purpose, delete crc32 in its section 'checkpoint'; paths may be changed freely"
        )
    if valid.format != FORMAT:
        raise UserError(
            f"{prefix}: has checkpoint format {valid.format}, and this version reads {FORMAT}; "
            "use the version that wrote it"
        )
    if files.is_average:
        return Checkpoint(files, config, _of_average(valid, files))
    if valid.files and not any(map(parts.is_average, valid.files)):
        files = replace(files, average=None)  # what lies there is left over from another save
    return Checkpoint(files, config, valid)


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
