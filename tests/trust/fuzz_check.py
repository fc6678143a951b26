"""One case, from its number: the mutation, the command, and what must not have come of it."""

from __future__ import annotations

import os
import random
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

import fuzz_case
from fuzz_case import Ended, Limits
from fuzz_mutations import mutate
from fuzz_places import open_again, reseal
from fuzz_targets import COMMANDS, REMAKES_DATA, TARGETS, Command, Target

SEALED = ("weights", ".state")  # kinds whose digests a tag's config.json records
CONTENT = ("bytes", "types", "sizes", "depth", "names", "variants")


@dataclass
class Result:
    number: int
    kind: str
    command: str
    way: str
    recipe: str
    code: int
    seconds: float
    mebibytes: int
    failures: list[str]
    stderr: str


@dataclass(frozen=True)
class Case:
    """What is done to which file, and the name of the command that reads it then."""

    target: Target
    name: str
    way: str
    recipe: str
    path: Path
    original: bytes
    sealed: bool  # a digest of the file as it was is recorded

    @property
    def command(self) -> Command:
        return COMMANDS[self.name]


def run_case(work: Path, seed: int, number: int, only: str, limits: Limits) -> Result | None:
    """Case `number`, in work/NUMBER, which is left there; None: its name has not `only` in it."""
    sandbox = work / str(number)
    case = _prepare(work / "base", sandbox, random.Random(f"{seed}:{number}"), only)
    if case is None:
        return None
    writes = {sandbox / "given" / place for place in case.command.writes}
    allowed = writes | {sandbox / "log", sandbox / "tmp"}
    before = snapshot(sandbox, allowed)
    lock_out = fuzz_case.without_privileges if case.way == "permissions" else None
    ended = fuzz_case.run(sandbox, case.command, limits, lock_out)
    after = snapshot(sandbox, allowed)
    open_again(sandbox)
    failures = _judge(work / "base", sandbox, case, ended)
    of_a_config = "config, " in case.target.kind or case.target.kind == "preprocess config"
    if changed := differences(before, after, "given/" if of_a_config else "\0"):
        failures.insert(0, f"foreign change: {'; '.join(changed)[:200]}")
    told = f"{case.recipe}; {' '.join(case.command.args)}"
    return Result(
        *(number, case.target.kind, case.name, case.way, told, ended.code),
        *(round(ended.seconds, 2), ended.mebibytes, failures, ended.stderr[-3000:]),
    )


def _prepare(base: Path, sandbox: Path, rng: random.Random, only: str) -> Case | None:
    """A copy of the base in which one file is mutated."""
    kind = rng.choice(sorted({target.kind for target in TARGETS}))
    target = rng.choice([target for target in TARGETS if target.kind == kind])
    name = rng.choice(target.commands.split("; "))
    if only not in f"{kind}: {name}":
        return None
    command = COMMANDS[name]
    shutil.rmtree(sandbox, ignore_errors=True)
    shutil.copytree(base / "sandbox", sandbox, symlinks=True)
    given = sandbox / "given"
    glob = target.glob.format(tag=command.tag)
    if target.form == "link":
        path = given / glob
    else:
        path = rng.choice(sorted(path for path in given.glob(glob) if path.is_file()))
    original = path.read_bytes() if path.is_file() else b""
    like = "shard" if kind == "stage" and path.suffix == ".parquet" else kind
    variants = sorted((base / "variants" / like).glob("*"))
    way, how = mutate(rng, path, target, sandbox / "outside", variants, command)
    recipe = f"{path.relative_to(given)}: {how}"
    sealed = command.tag != "" and kind in SEALED
    if sealed and way in CONTENT and rng.random() < 0.5:
        reseal(given / command.tag, path)
        recipe, sealed = f"{recipe}, its digest renewed", False
    return Case(target, name, way, recipe, path, original, sealed)


def _judge(base: Path, sandbox: Path, case: Case, ended: Ended) -> list[str]:
    """What is wrong with how it ended, or with what it made."""
    failures, given = list(ended.failures), sandbox / "given"
    if "config" in case.target.kind and ended.code == 143 and "\nstep " in ended.stderr:
        failures = [failure for failure in failures if failure != "hang"]  # many steps to make
    if ended.code != 0 or failures:
        return failures
    if case.sealed and case.name != "resume auto" and not _same(case.path, case.original):
        failures.append("silent: files that are not those recorded were used")
    if case.name in REMAKES_DATA and case.target.kind not in ("JSON lines", "preprocess config"):
        failures += _other_shards(base / "sandbox/given/data", given / case.command.writes[0])
    renewed = case.target.kind in SEALED and not case.sealed
    if case.name.startswith("resume") and case.target.kind != "shard" and not renewed:
        weights = (base / "resumed.safetensors").read_bytes()
        if not _same(given / "out/final.safetensors", weights):
            failures.append("silent: the resumed run ended with other weights")
    return failures


def _same(path: Path, original: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(original) and path.read_bytes() == original


def _other_shards(whole: Path, output: Path) -> list[str]:
    """What an output lacks of the dataset that the same input makes, or has differently."""
    other = []
    for folder in ("tokenizer", "train", "val"):
        names = {path.name for place in (whole, output) for path in (place / folder).glob("*")}
        for name in sorted(names):
            path = whole / folder / name
            if not path.exists() or not _same(output / folder / name, path.read_bytes()):
                other.append(f"{folder}/{name}")
    return [f"silent: other shards with exit code 0: {', '.join(other)[:160]}"] if other else []


Snapshot = dict[str, tuple[object, ...]]


def snapshot(folder: Path, without: set[Path]) -> Snapshot:
    """Every path below a folder with what a change to it would change."""
    found: Snapshot = {}
    stack = [str(folder)]
    left_out = {str(path) for path in without}
    while stack:
        inside = stack.pop()
        if not os.access(inside, os.R_OK | os.X_OK):
            continue
        with os.scandir(inside) as entries:
            for entry in entries:
                if entry.path in left_out:
                    continue
                info = entry.stat(follow_symlinks=False)
                inner = stat.S_ISDIR(info.st_mode)
                if inner:
                    stack.append(entry.path)
                target = os.readlink(entry.path) if stat.S_ISLNK(info.st_mode) else ""
                # a folder's own size and times change with what may be written in it
                rest = () if inner else (info.st_size, info.st_mtime_ns, info.st_ctime_ns)
                name = os.path.relpath(entry.path, folder)
                found[name] = (info.st_mode, info.st_ino, target, *rest)
    return found


def differences(before: Snapshot, after: Snapshot, new_is_fine: str = "\0") -> list[str]:
    """What changed, in words.

    Args:
        new_is_fine: a folder in which something new is no change.
    """
    changes = [f"{name} deleted" for name in before if name not in after]
    changes += [
        f"{name} changed" for name in before if after.get(name, before[name]) != before[name]
    ]
    return changes + [
        f"{name} made" for name in after if name not in before and not name.startswith(new_is_fine)
    ]
