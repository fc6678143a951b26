"""The stage of a run, out of sight in its output folder, and how it is published from there, whole.

output/.preprocess/ holds `lock`, `journal.jsonl`, `new/` (what is to be published) and, while that
happens, `moves.json` and `old/` (what is replaced). A run that finds it goes on from there.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from light_llm.errors import UserError
from light_llm.files.disk import flush, locked, remove, sync, write_atomically
from light_llm.preprocess.output import STAGE, placed, present

LOCK, JOURNAL, NEW, OLD, MOVES = "lock", "journal.jsonl", "new", "old", "moves.json"


@contextlib.contextmanager
def staging(output: Path) -> Iterator[Path]:
    """output/.preprocess, locked. It is gone at the end unless the body leaves a journal with
    shards behind it; so are folders that were made for nothing.

    Raises:
        UserError: another run holds it, or the disk refuses.
    """
    stage = output.absolute() / STAGE
    made = [path for path in (stage.parent, *stage.parent.parents) if not path.exists()]
    try:
        stage.mkdir(parents=True, exist_ok=True)
        sync(stage.parent)
        held = (
            f"--output {output}: is being written by another llm-preprocess; wait for it, or "
            "choose another folder"
        )
        with locked(stage / LOCK, held):
            try:
                yield stage
            finally:
                if not _worth_keeping(stage):
                    shutil.rmtree(stage, ignore_errors=True)  # a next run may be in it already
    except OSError as error:  # a full disk names no file
        what = f"--output {output}" if error.filename is None else error.filename
        raise UserError(f"{what}: {error.strerror or error}") from error
    finally:
        for path in made:  # the innermost first
            with contextlib.suppress(OSError):  # it holds something
                path.rmdir()


def _worth_keeping(stage: Path) -> bool:
    if (stage / MOVES).exists():
        return True
    journal = stage / JOURNAL
    return journal.exists() and b'"sha256"' in journal.read_bytes()


def publish_shards(
    stage: Path, output: Path, parts: tuple[str, ...], asked: dict[str, Any]
) -> None:
    """Move what is in stage/new to `output`, in place of what a former run wrote there.

    Decided by one rename, of moves.json; from then on it will happen, now or at the next start
    (`complete_moves`). There are no train shards from the first move to the last, so that nobody
    can read those of two runs as one. A signal waits until it is done.

    Args:
        asked: what the run was asked for, as JSON; `complete_moves` gives it to the run that
            completes this one.
    """
    flush(stage / NEW)
    ready = [name for name in placed(parts) if (stage / NEW / name).exists()]
    moves = {"away": present(output, parts)[::-1], "in": ready, "asked": asked}
    write_atomically(stage / MOVES, json.dumps(moves).encode())
    with _signals_held():
        complete_moves(stage, output)


def complete_moves(stage: Path, output: Path, overwrite: bool = False) -> dict[str, Any] | None:
    """Complete a publication that was decided; can be repeated after a crash at any point.

    Returns what the run was asked for that decided it; None: there was none.

    Raises:
        UserError: moves.json is damaged, and not `overwrite`, which forgets it.
    """
    if not (stage / MOVES).exists():
        return None
    moves = _moves(stage / MOVES)
    if moves is None:
        if not overwrite:
            raise UserError(
                f"{stage / MOVES}: is damaged, so that the run that was stopped while its "
                f"shards were moved into place cannot be completed; {stage} holds what is left of "
                "it. Begin anew with --overwrite"
            )
        for name in (NEW, OLD):
            remove(stage / name)
        (stage / JOURNAL).unlink(missing_ok=True)
        (stage / MOVES).unlink()
        return None
    (stage / OLD).mkdir(exist_ok=True)
    for name in moves["away"]:
        replaced = name not in moves["in"] or (stage / NEW / name).exists()
        if replaced and (output / name).exists() and not (stage / OLD / name).exists():
            (output / name).rename(stage / OLD / name)
    for name in moves["in"]:
        if (stage / NEW / name).exists():
            (stage / NEW / name).rename(output / name)
    sync(output)
    for path in stage.iterdir():
        if path.name not in (LOCK, MOVES):
            remove(path)
    (stage / MOVES).unlink()
    asked: dict[str, Any] = moves["asked"]
    return asked


def _moves(path: Path) -> dict[str, Any] | None:
    try:
        moves = json.loads(path.read_text(encoding="utf-8"))
        whole = isinstance(moves["asked"], dict)
        whole = whole and all(isinstance(moves[key], list) for key in ("away", "in"))
        whole = whole and all(map(_is_name, moves["away"] + moves["in"]))
    except (ValueError, TypeError, KeyError):
        return None
    return moves if whole else None


def _is_name(entry: Any) -> bool:
    """Whether it names something in a folder, and not beside or above it."""
    return isinstance(entry, str) and "/" not in entry and entry not in ("", ".", "..")


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is ever interrupted
        return
    arrived: list[int] = []
    before = {
        number: signal.signal(number, lambda caught, _: arrived.append(caught))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
    for caught in arrived:
        signal.raise_signal(caught)
