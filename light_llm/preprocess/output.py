"""The output folder: what is written is staged in it out of sight, and published whole.

output/.preprocess/ holds `lock`, `journal.jsonl`, `new/` (what is to be published) and, while that
happens, `moves.json` and `old/` (what is replaced). A run that finds it goes on from there.
"""

from __future__ import annotations

import contextlib
import fcntl
import filecmp
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from light_llm.errors import UserError
from light_llm.files.disk import flush, sync
from light_llm.preprocess.manifest import MANIFEST, read_manifest
from light_llm.tokenizer.kinds import CHAR_FILE

STAGE = ".preprocess"
TOKENIZER_FILES = ("tokenizer.json", CHAR_FILE)
SPLITS = ("val", "train")


def placed(parts: tuple[str, ...]) -> list[str]:
    """What an output of the corpora `parts` holds, in the order of publication: shards come last,
    so that they never lack their tokenizer and their manifest."""
    return [
        "tokenizer",
        MANIFEST,
        *(name for part in parts for name in ([part] if part else SPLITS)),
    ]


def check_place(output: Path, flag: str = "--output") -> None:
    """
    Raises:
        UserError: `output` is a file or is not writable.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"{flag} {output}: is a file; give a folder")
    nearest = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {output}: nothing can be written in {nearest}; choose another")


def check_copy(folder: Path, output: Path, parts: tuple[str, ...]) -> None:
    """
    Raises:
        UserError: nothing can be written in `folder`, or it is where publication replaces all.
    """
    check_place(folder, "--save-tokenizer")
    for name in (STAGE, *placed(("",)), *placed(parts)):
        if folder.resolve().is_relative_to((output / name).resolve()):
            raise UserError(
                f"--save-tokenizer {folder}: is in {output / name}, which the run itself writes; "
                "choose another folder (the tokenizer is in output/tokenizer in any case)"
            )


def check_free(folder: Path, overwrite: bool, saving: Path) -> None:
    """
    Raises:
        UserError: there is another tokenizer in `folder` than that in `saving`, which may not be
            there yet, and not `overwrite`.
    """
    if overwrite:
        return
    for name in TOKENIZER_FILES:
        if (folder / name).exists() and not _agrees(folder, saving):
            raise UserError(
                f"--save-tokenizer {folder}: holds {name} already; choose another folder, or "
                "replace it with --overwrite"
            )


def _agrees(folder: Path, saving: Path) -> bool:
    """Whether `folder` holds the files of `saving`, or the first of them, and no other kind's."""
    names = [path.name for path in saving.iterdir()] if saving.exists() else []
    there = [name for name in {*names, *TOKENIZER_FILES} if (folder / name).exists()]
    return all(
        name in names and filecmp.cmp(folder / name, saving / name, shallow=False) for name in there
    )


def copy_tokenizer(saved: Path, folder: Path) -> None:
    """Each file whole or not at all, and on the disk; none of another kind stays beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(saved.iterdir()):
        temporary = folder / f"{path.name}.writing"
        shutil.copyfile(path, temporary)
        sync(temporary)
        temporary.rename(folder / path.name)
    for name in TOKENIZER_FILES:
        if not (saved / name).exists():
            (folder / name).unlink(missing_ok=True)
    sync(folder)
    sync(folder.absolute().parent)


def check_output(output: Path, overwrite: bool, parts: tuple[str, ...] = ("",)) -> None:
    """
    Raises:
        UserError: `output` holds shards already (unless `overwrite`) or, in the place of those of
            the corpora `parts`, files of someone else.
    """
    there = _present(output, parts)
    for name in there:
        for folder in _shard_folders(output, name):
            for path in sorted(folder.iterdir()):
                if not path.match("shard_*.parquet"):
                    raise UserError(
                        f"--output {output}: {path} is not a shard, and {folder} is where the "
                        "shards would go; move it away or choose another folder"
                    )
    if there and not overwrite:
        raise UserError(
            f"--output {output}: holds {', '.join(there)} already; choose another folder, or "
            "replace them with --overwrite"
        )


def _present(output: Path, parts: tuple[str, ...]) -> list[str]:
    """Of a former run or in the way of this one."""
    names = [*placed(("",)), *placed(parts)]
    if (output / MANIFEST).exists():
        manifest = read_manifest(output / MANIFEST)
        if manifest is None:
            raise UserError(
                f"--output {output}: {output / MANIFEST} is not a manifest of shards, and that is "
                "where it would go; move it away or choose another folder"
            )
        names += [str(row["file"]).partition("/")[0] for row in manifest["shards"]]
    return [name for name in dict.fromkeys(names) if (output / name).exists()]


def _shard_folders(output: Path, name: str) -> list[Path]:
    if name in ("tokenizer", MANIFEST):
        return []
    folder = output / name
    if name in SPLITS or not folder.is_dir():
        return [folder]
    inner = [folder / split for split in SPLITS if (folder / split).is_dir()]
    return inner if len(inner) == len(list(folder.iterdir())) else [folder]


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
        with (stage / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock.fileno()).st_nlink == 0:  # its holder removed it meanwhile
                    raise BlockingIOError
            except BlockingIOError:
                raise UserError(
                    f"--output {output}: is being written by another llm-preprocess; wait for it, "
                    "or choose another folder"
                ) from None
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
    if (stage / "moves.json").exists():
        return True
    journal = stage / "journal.jsonl"
    return journal.exists() and b'"sha256"' in journal.read_bytes()


def publish(stage: Path, output: Path, parts: tuple[str, ...], asked: dict[str, Any]) -> None:
    """Move what is in stage/new to `output`, in place of what a former run wrote there.

    Decided by one rename, of moves.json; from then on it will happen, now or at the next start
    (`recover`). There are no train shards from the first move to the last, so that nobody can read
    those of two runs as one. A signal waits until it is done.

    Args:
        asked: what the run was asked for, as JSON; what `recover` gives if it completes this.
    """
    flush(stage / "new")
    ready = [name for name in placed(parts) if (stage / "new" / name).exists()]
    moves = {"away": _present(output, parts)[::-1], "in": ready, "asked": asked}
    (stage / "moves.tmp").write_text(json.dumps(moves))
    sync(stage / "moves.tmp")
    (stage / "moves.tmp").rename(stage / "moves.json")
    sync(stage)
    with _signals_held():
        recover(stage, output)


def recover(stage: Path, output: Path, overwrite: bool = False) -> dict[str, Any] | None:
    """Complete a publication that was decided; can be repeated after a crash at any point.

    Returns what the run was asked for that decided it; None: there was none.

    Raises:
        UserError: moves.json is damaged, and not `overwrite`, which forgets it.
    """
    if not (stage / "moves.json").exists():
        return None
    moves = _moves(stage / "moves.json")
    if moves is None:
        if not overwrite:
            raise UserError(
                f"{stage / 'moves.json'}: is damaged, so that the run that was stopped while its "
                f"shards were moved into place cannot be completed; {stage} holds what is left of "
                "it. Begin anew with --overwrite"
            )
        for name in ("new", "old"):
            shutil.rmtree(stage / name, ignore_errors=True)
        (stage / "journal.jsonl").unlink(missing_ok=True)
        (stage / "moves.json").unlink()
        return None
    (stage / "old").mkdir(exist_ok=True)
    for name in moves["away"]:
        replaced = name not in moves["in"] or (stage / "new" / name).exists()
        if replaced and (output / name).exists() and not (stage / "old" / name).exists():
            (output / name).rename(stage / "old" / name)
    for name in moves["in"]:
        if (stage / "new" / name).exists():
            (stage / "new" / name).rename(output / name)
    sync(output)
    for path in stage.iterdir():
        if path.name not in ("lock", "moves.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (stage / "moves.json").unlink()
    asked: dict[str, Any] = moves["asked"]
    return asked


def _moves(path: Path) -> dict[str, Any] | None:
    try:
        moves = json.loads(path.read_text(encoding="utf-8"))
        whole = isinstance(moves["asked"], dict)
        whole = whole and all(isinstance(moves[key], list) for key in ("away", "in"))
    except (ValueError, TypeError, KeyError):
        return None
    return moves if whole else None


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
