"""The checkpoint directory of a run: saving tags, keeping few, finding and loading one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
from safetensors import SafetensorError

from light_jax.checkpoint import files
from light_jax.checkpoint.state import (
    HostState,
    load_arrays,
    load_host_state,
    save_state,
    with_arrays,
)
from light_jax.checkpoint.weights import load_weights, save_weights
from light_jax.config import TrainingConfig
from light_jax.data.index import describe_change
from light_jax.distributed import barrier, is_main
from light_jax.step import TrainState, params_of
from light_llm import checkpoint as layout
from light_llm.errors import UserError

MUST_MATCH = (
    "model",
    "seq_len",
    "batch_size",
    "gradient_accumulation_steps",
    "seed",
    "optimizer.type",
    "dtype",
    "bf16_model_weights",
)


START = ".resumed.json"  # the prefix and generation of the last resume


@dataclasses.dataclass(frozen=True)
class Tag:
    """A complete tag and where it stands in the history of its directory."""

    prefix: Path
    run: str
    generation: int  # counts the starts of the run: 1, then one more with each resume
    step: int

    @property
    def order(self) -> tuple[int, int]:
        """A resumed run's tags are newer than those that it left behind, whatever their steps."""
        return self.generation, self.step


def read_tag(prefix: str | Path) -> Tag:
    """The tag of a prefix.

    Raises:
        UserError: it is not there (lists those that are), or holds no state to resume from.
    """
    directory, name = layout.split_prefix(prefix)
    if not (layout.weights_there(prefix) and name):
        raise layout.missing(prefix)
    record = layout.read_record(prefix)
    if record is None or not layout.member(prefix, layout.STATE).is_dir():
        raise UserError(
            f"{prefix}: holds weights but no state of this trainer to resume from; "
            "start from its weights with init_from"
        )
    if record.format != layout.FORMAT:
        raise UserError(
            f"{prefix}: is of checkpoint format {record.format}, and this version reads "
            f"{layout.FORMAT}; use the version that wrote it"
        )
    return Tag(directory / name, record.run, record.generation, record.step)


def own_tags(directory: Path) -> list[Tag]:
    """The tags there that this trainer can resume from, oldest first."""
    found = []
    for name in layout.tags(directory):
        with contextlib.suppress(UserError):  # another trainer's, or a copy of the weights alone
            found.append(read_tag(directory / name))
    return sorted(found, key=lambda tag: tag.order)


def find(resume: str, directory: Path) -> Tag | None:
    """`auto` is the newest tag of the directory, or None; otherwise the tag of that prefix."""
    if resume != "auto":
        return read_tag(resume)
    newest = max(own_tags(directory), key=lambda tag: tag.order, default=None)
    start = _read_start(directory)
    if newest is None or start is None or newest.generation >= start["generation"]:
        return newest
    return read_tag(start["resumed"])  # a resumed run that was stopped before its first tag


def starts(directory: Path) -> int:
    """How often the run in this directory was started so far: its newest generation, or 0."""
    start = _read_start(directory) or {"generation": 0}
    return max([start["generation"], *(tag.generation for tag in own_tags(directory))])


def _read_start(directory: Path) -> dict[str, Any] | None:
    """What the last resume in this directory started from."""
    path = directory / START
    return json.loads(path.read_text()) if path.exists() else None


def check_resumable(
    tag: Tag, cfg: TrainingConfig, fingerprint: list[dict[str, Any]]
) -> tuple[HostState, list[str]]:
    """Verify the files (each process those that it wrote) and compare the configs.

    Returns:
        The state on the host, and a line per setting that changed and may.

    Raises:
        UserError: damaged files, or changes that would make it another run.
    """
    layout.verify(tag.prefix, _mine)
    host = load_host_state(layout.member(tag.prefix, layout.STATE))
    changes = changed_settings(tag, cfg)
    refused = [line for key, line in changes if must_match(key)]
    shards = describe_change(host.fingerprint, fingerprint)
    if shards is not None:
        refused.append(f"train_data: {shards}")
    if refused:
        raise UserError(
            f"{tag.prefix}: cannot be resumed with this config; undo these changes, or start a "
            "new run from its weights with init_from:\n  " + "\n  ".join(refused)
        )
    if {"val_data", "eval_steps", "checkpoint_dir"} & {key for key, _ in changes}:
        host.best_val_loss = None  # of other tokens, or in another directory
    return host, [line for _, line in changes]


def _mine(name: str) -> bool:
    """Each process verifies what it wrote, process 0 also what all share."""
    _, _, writer = name.partition("ocdbt.process_")
    writer = writer.partition("/")[0]
    owner = int(writer) % jax.process_count() if writer.isdigit() else 0
    return owner == jax.process_index()


def must_match(key: str) -> bool:
    """Whether a change of that setting would make it another run."""
    return any(key == fixed or key.startswith(f"{fixed}.") for fixed in MUST_MATCH)


def changed_settings(tag: Tag, cfg: TrainingConfig) -> list[tuple[str, str]]:
    """(key, `key: old -> new`) of every setting of a tag's config that differs in `cfg`."""
    return _changes(layout.read_snapshot(tag.prefix), cfg.model_dump(mode="json"))


def _changes(old: dict[str, Any], new: dict[str, Any], at: str = "") -> list[tuple[str, str]]:
    lines = []
    for name in [*old, *(name for name in new if name not in old)]:
        key, before, after = f"{at}{name}", old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += _changes(before, after, f"{key}.")
        elif before != after:
            lines.append((key, f"{key}: {json.dumps(before)} -> {json.dumps(after)}"))
    return lines


def load(tag: Tag, cfg: TrainingConfig, abstract: TrainState, shardings: TrainState) -> TrainState:
    """The state at a tag whose files are verified, laid out by `shardings`."""
    path = layout.member(tag.prefix, layout.WEIGHTS)
    weights = load_weights(path, cfg.model, shardings.weights, verified=True)
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )
    arrays = load_arrays(layout.member(tag.prefix, layout.STATE), placed)
    params, master = params_of(cfg, weights)
    return dataclasses.replace(with_arrays(placed, arrays), params=params, master=master)


class Store:
    """The checkpoint directory that a run writes. Every process makes one; process 0 writes."""

    def __init__(self, cfg: TrainingConfig, resumed: Tag | None) -> None:
        self.cfg, self.directory = cfg, Path(cfg.checkpoint_dir)
        self.resumed = resumed
        self.generation = 1  # known to process 0 once the directory is open

    def save(self, tag: str, state: TrainState, host: HostState) -> None:
        """Commit the three files of a tag; every process calls it.

        Raises:
            UserError: they cannot be written. The tags before are intact.
        """
        try:
            self._save(tag, state, host)
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self.directory / tag}: cannot be saved ({reason}); make room or mend the disk, "
                "and continue with --resume auto from the tag before, which is intact"
            ) from None

    def _save(self, tag: str, state: TrainState, host: HostState) -> None:
        staging = files.writing_dir(self.directory, tag)
        if is_main():
            files.start(self.directory, tag)
        barrier(f"start {tag}")
        save_weights(staging / f"{tag}{layout.WEIGHTS}", state.weights, self.cfg.model)
        save_state(staging / f"{tag}{layout.STATE}", state, host)
        if is_main():
            write_config(staging, tag, self.cfg, host.run, self.generation, int(state.step))
            files.commit(self.directory, tag)
            self._retain()
        barrier(f"committed {tag}")

    def _retain(self) -> None:
        """Delete the step tags of an abandoned future, then those beyond the newest keep_last_n."""
        tags = own_tags(self.directory)
        steps = [tag for tag in tags if files.STEP_TAG.fullmatch(tag.prefix.name)]
        left_at = 0 if self.resumed is None else self.resumed.step
        abandoned = [t for t in steps if t.generation < self.generation and t.step > left_at]
        kept = sorted((t for t in steps if t not in abandoned), key=lambda tag: tag.step)
        for tag in [*abandoned, *kept[: -self.cfg.keep_last_n]]:
            files.delete(self.directory, tag.prefix.name)

    def open(self, held: contextlib.ExitStack, config_path: Path) -> None:
        """Make the directory, lock it, finish what a crash left, keep a copy of the config file.

        Process 0 alone calls it.

        Raises:
            UserError: another run writes there, or did so since this one was checked.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        held.enter_context(files.locked(self.directory))
        files.recover(self.directory)
        check_writable(self.directory, self.resumed)
        self._copy_config(config_path)
        if self.resumed is not None:
            self.generation = 1 + max(self.resumed.generation, starts(self.directory))
            start = {
                "generation": self.generation,
                "resumed": str(self.resumed.prefix.absolute()),
            }
            files.write_atomically(self.directory / START, json.dumps(start).encode())

    def has_final(self) -> bool:
        """Whether the resumed step's `final` tag is there."""
        finals = [tag for tag in own_tags(self.directory) if tag.prefix.name == "final"]
        return self.resumed is not None and any(tag.step == self.resumed.step for tag in finals)

    def _copy_config(self, path: Path) -> None:
        name = "config.json" if path.name.endswith(layout.CONFIG) else path.name
        target = self.directory / name
        if not (target.exists() and target.samefile(path)):
            files.write_atomically(target, path.read_bytes())


def write_config(
    staging: Path, tag: str, cfg: TrainingConfig, run: str, generation: int, step: int
) -> None:
    """The last member of a staged tag: the config, and what ties it to the files beside it."""
    members = {
        str(path.relative_to(staging)).removeprefix(tag): layout.digest(path)
        for path in sorted(staging.rglob("*"))
        if path.is_file()
    }
    record = {
        "format": layout.FORMAT,
        "run": run,
        "generation": generation,
        "step": step,
        "files": members,
    }
    config = cfg.model_dump(mode="json") | {"checkpoint": record}
    path = staging / f"{tag}{layout.CONFIG}"
    path.write_text(json.dumps(config, indent=2) + "\n")
    shutil.copymode(path, staging / f"{tag}{layout.WEIGHTS}")  # safetensors' own is 0600


def _is_of_another_run(prefix: Path, run: str) -> bool:
    try:
        record = layout.read_record(prefix)
    except UserError:  # damaged: nobody can say, and nobody can use it
        return False
    return record is None or record.run != run


def check_writable(directory: Path, resumed: Tag | None) -> None:
    """Refuse, before anything is written, a directory that cannot take this run.

    Raises:
        UserError: it is a file, not writable, or holds another run's checkpoints.
    """
    if set("[]*?") & set(str(directory.absolute())):  # orbax takes them for patterns
        raise UserError(
            f"checkpoint_dir={str(directory)!r}: {directory.absolute()} has one of [ ] * ? in it, "
            "which checkpoints cannot be written under; use another folder"
        )
    existing = directory
    while not existing.exists() and not existing.is_symlink():
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"checkpoint_dir={str(directory)!r}: {existing} is not a folder")
    try:
        probe = existing / ".light-llm-probe"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise UserError(
            f"checkpoint_dir={str(directory)!r} cannot be written ({error.strerror}); "
            "use another folder"
        ) from None
    others = {name for name in layout.tags(directory) if files.is_own_name(name)}
    if resumed is not None:
        others = {name for name in others if _is_of_another_run(directory / name, resumed.run)}
    if others:
        raise UserError(
            f"checkpoint_dir={str(directory)!r} holds a run already ({', '.join(sorted(others))}); "
            "continue that one with --resume auto, or use another checkpoint_dir"
        )
