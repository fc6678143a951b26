"""The stage of a run, a hidden folder in its output, and how it is published from there at once.

output/.preprocess/ holds `lock`, a mark that this program made it, `journal.jsonl`, `new/` (to be
published), `hashes/` (of the texts there), `copies/` (what --dedupe drops) and, during publication,
`moves.json` and `old/` (what is replaced). A run that finds it continues from there. A run in parts
has `plan.json` in place of the journal, and `parts/`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from light_llm.errors import UserError
from light_llm.files import given
from light_llm.files.disk import (
    Held,
    Lock,
    flush,
    locked,
    make_folder,
    remove,
    sync,
    write_atomically,
)
from light_llm.preprocess.manifest import MANIFEST, TOKENIZER, read_manifest, tokenizer_fingerprint
from light_llm.preprocess.output import STAGE, check_ours, check_output, placed, present
from light_llm.preprocess.plan import running_parts
from light_llm.preprocess.shards import sha256
from light_llm.preprocess.stage import (
    COPIES,
    HASHES,
    JOURNAL,
    LOCK,
    MARK,
    MOVES,
    NEW,
    OLD,
    PARTS,
    PLAN,
    check_stage,
    mark,
)


def _unlocked() -> None:
    """The check of a caller without a lock, such as a test."""


@dataclass(frozen=True)
class Stage:
    """The folder that a run writes in and holds the lock of."""

    path: Path
    lock: Lock

    def check(self) -> None:
        """To be called before each commit.

        Raises:
            UserError: the folder is no longer the one that was locked.
        """
        self.lock.check(
            f"{self.path.parent}: is no longer the folder that this run began in: it, or the "
            "lock in it, was moved, replaced or removed. Nothing more is written there; put it "
            "back, and the same command continues"
        )


@contextlib.contextmanager
def staging(output: Path) -> Iterator[Stage]:
    """output/.preprocess, locked. At the end it is deleted, unless the body leaves a journal that
    names shards or a list of duplicates; so are parent folders that were made and stayed empty.

    Raises:
        UserError: another run holds it, llm-preprocess did not make it, or the disk fails.
    """
    stage = output.absolute() / STAGE
    made = [path for path in (stage.parent, *stage.parent.parents) if not path.exists()]
    try:
        make_folder(stage)
        check_stage(stage)
        sync(stage.parent)
        held = (
            f"--output {output}: is being written by another llm-preprocess; wait for it, or "
            "choose another folder"
        )
        with _explained(stage), locked(stage / LOCK, held) as lock:
            try:
                mark(stage)
                yield Stage(stage, lock)
            finally:
                if lock.holds() and not _worth_keeping(stage):
                    shutil.rmtree(stage, ignore_errors=True)  # the next run may already use it
    except OSError as error:  # a full disk names no file
        what = f"--output {output}" if error.filename is None else error.filename
        raise UserError(f"{what}: {error.strerror or error}") from error
    finally:
        for path in made:  # the innermost first
            with contextlib.suppress(OSError):  # it holds something
                path.rmdir()


@contextlib.contextmanager
def _explained(stage: Path) -> Iterator[None]:
    """Name the parts that are being made, where these are why the stage is held."""
    try:
        yield
    except Held as error:
        running = running_parts(stage)
        if not running:
            raise
        some = ", ".join(map(str, running))
        raise Held(f"{error} (now: {'part' if len(running) == 1 else 'parts'} {some})") from None


def _worth_keeping(stage: Path) -> bool:
    if (stage / MOVES).exists() or (stage / PLAN).exists():
        return True
    journal = stage / JOURNAL
    if not journal.exists():
        return False
    lines = given.read_bytes(journal, given.LARGE).splitlines()
    return any(b'"sha256"' in line or line.startswith(b'{"copies"') for line in lines)


def publish_shards(
    stage: Path,
    output: Path,
    parts: tuple[str, ...],
    asked: dict[str, Any],
    overwrite: bool = True,
    check: Callable[[], None] = _unlocked,
) -> None:
    """Move what is in stage/new to `output`, in place of what a previous run wrote there.

    One rename, of moves.json, decides it; from then on it will happen, now or at the next start
    (`complete_moves`). From the first move to the last there are no train shards, so nobody can
    read shards of two runs as one dataset. A signal waits until it is done.

    Args:
        asked: what the run was asked for, as JSON; `complete_moves` gives it to the run that
            completes this one.
        check: raises if the stage is no longer ours.

    Raises:
        UserError: as `check` and `check_output`, since files may have come during the run.
    """
    check_output(output, overwrite, parts)
    flush(stage / NEW)
    check()
    ready = [name for name in placed(parts) if (stage / NEW / name).exists()]
    moves = {"away": present(output, parts)[::-1], "in": ready, "asked": asked}
    write_atomically(stage / MOVES, json.dumps(moves).encode())
    with _signals_held():
        complete_moves(stage, output, check=check)


def complete_moves(
    stage: Path,
    output: Path,
    overwrite: bool = False,
    check: Callable[[], None] = _unlocked,
    verify: bool = False,
) -> dict[str, Any] | None:
    """Complete a publication that was decided; can be repeated after a crash at any point.

    Returns what the run that decided it was asked for; None: there was no such run.

    Args:
        verify: compare what is still to move with the manifest's checksums.

    Raises:
        UserError: moves.json or what it would move is damaged, and `overwrite` is false (true
            discards it); or it would move what no run writes.
    """
    if not (stage / MOVES).exists():
        return None
    check()
    moves = _moves(stage / MOVES)
    away, to_come = ([], []) if moves is None else _still_to_move(stage, output, moves)
    damaged = stage / MOVES if moves is None else _damaged(stage, output, moves) if verify else None
    if moves is None or damaged is not None:
        if not overwrite:
            raise UserError(
                f"{damaged}: is damaged, so the run that was stopped while its shards "
                f"were moved into place cannot be completed; {stage} holds what is left of it. "
                "Begin again with --overwrite"
            )
        for name in (PLAN, NEW, OLD, PARTS, HASHES, COPIES):
            remove(stage / name)
        (stage / JOURNAL).unlink(missing_ok=True)
        (stage / MOVES).unlink()
        return None
    (stage / OLD).mkdir(exist_ok=True)
    for name in away:
        (output / name).rename(stage / OLD / name)
    for name in to_come:
        (stage / NEW / name).rename(output / name)
    sync(output)
    for path in stage.iterdir():
        if path.name not in (LOCK, MARK, MOVES):
            remove(path)
    (stage / MOVES).unlink()
    asked: dict[str, Any] = moves["asked"]
    return asked


def _damaged(stage: Path, output: Path, moves: dict[str, Any]) -> Path | None:
    """The first file that is not what the run wrote, by its manifest; None: all are."""
    new = stage / NEW
    to_come = set(moves["in"])
    there = {path.name for path in new.iterdir()} if new.is_dir() else set()
    if there - to_come or any(not (output / name).exists() for name in to_come - there):
        return stage / MOVES
    path = next((p for p in (new / MANIFEST, output / MANIFEST) if p.exists()), new / MANIFEST)
    manifest = read_manifest(path)
    if manifest is None:
        return path
    for row in manifest["shards"]:
        shard = new / row["file"]
        if shard.exists() and sha256(shard) != row.get("sha256"):
            return shard
    folder = new / TOKENIZER
    known = manifest["tokenizer"].get("fingerprint")
    return folder if folder.exists() and tokenizer_fingerprint(folder) != known else None


def _still_to_move(stage: Path, output: Path, moves: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What must still leave `output`, and what must still go there, by moves.json (which anybody
    may have written).

    Raises:
        UserError: it is not what a run writes, or would replace something that stays.
    """
    to_come = [name for name in moves["in"] if (stage / NEW / name).exists()]
    away = [
        name
        for name in moves["away"]
        if (name not in moves["in"] or name in to_come)
        and os.path.lexists(output / name)
        and not os.path.lexists(stage / OLD / name)
    ]
    for name in away:
        check_ours(output, name, output)
    for name in to_come:
        check_ours(stage / NEW, name, output)
        if os.path.lexists(output / name) and name not in away:
            raise UserError(
                f"{stage / MOVES}: {output / name} would be replaced by that in {stage / NEW}, but "
                "the stopped run did not find it there; move it away"
            )
    return away, to_come


def _moves(path: Path) -> dict[str, Any] | None:
    try:
        moves = given.read_json(path, given.LARGE)
        whole = isinstance(moves["asked"], dict)
        whole = whole and all(isinstance(moves[key], list) for key in ("away", "in"))
        whole = whole and all(map(_is_name, moves["away"] + moves["in"]))
    except (UserError, TypeError, KeyError):
        return None
    return moves if whole else None


def _is_name(entry: Any) -> bool:
    """Whether a run may publish under this name: the tokenizer, the manifest, a split, a corpus."""
    return given.is_name(entry) and not entry.startswith(".")


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is ever interrupted
        return
    arrived: list[int] = []
    before = {
        number: signal.signal(number, lambda caught, _: arrived.append(caught))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
    for caught in arrived:
        signal.raise_signal(caught)
