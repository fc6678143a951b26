"""The output folder: staged out of sight, published whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from light_llm.errors import UserError

ENTRIES = ("tokenizer", "val", "train")
"""What an output folder holds; train comes last, so that shards never lack their tokenizer."""


def check_output(output: Path, overwrite: bool) -> None:
    """
    Raises:
        UserError: shards could not be published in `output`: it is a file, is not writable, holds
            shards already (unless `overwrite`) or, in their place, files of someone else.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output}: is a file; give a folder")
    nearest = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"--output {output}: nothing can be written in {nearest}; choose another")
    for split in ("train", "val"):
        if (output / split).exists():
            for path in sorted((output / split).iterdir()):
                if not path.match("shard_*.parquet"):
                    raise UserError(
                        f"--output {output}: {path} is not a shard, and {output / split} is where "
                        "the shards would go; move it away or choose another folder"
                    )
    there = [entry for entry in ENTRIES if (output / entry).exists()]
    if there and not overwrite:
        raise UserError(
            f"--output {output}: holds {', '.join(there)} already; choose another folder, or "
            "replace them with --overwrite"
        )


@contextlib.contextmanager
def staging(output: Path) -> Iterator[Path]:
    """A hidden folder on the file system of `output`, gone at the end whatever happens."""
    output = output.absolute()
    made = [path for path in output.parents if not path.exists()]
    stage = (output if output.is_dir() else output.parent) / f".preprocess-{uuid.uuid4().hex[:8]}"
    try:
        stage.mkdir(parents=True)
        yield stage
        made = []
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for path in made:  # the innermost first
            with contextlib.suppress(OSError):
                path.rmdir()


def publish(stage: Path, output: Path, overwrite: bool) -> None:
    """Move what is staged to `output`: all of it, or on an error nothing.

    A new folder appears by one rename. Where old entries are replaced, there is no train folder
    from the first move to the last, so that nobody can read the shards of two runs as one; a
    signal waits until it is done.

    Raises:
        UserError: as `check_output`, since the folder may have changed meanwhile.
    """
    check_output(output, overwrite)
    for folder, _, names in os.walk(stage):
        for name in (*names, "."):
            _flush(Path(folder) / name)
    if not output.exists():
        stage.rename(output)
        _flush(output.absolute().parent)
        return
    replaced = stage / "replaced"
    replaced.mkdir(exist_ok=True)
    moves = [(output / entry, replaced / entry) for entry in reversed(ENTRIES)]
    moves += [(stage / entry, output / entry) for entry in ENTRIES]
    with _signals_held():
        done = []
        try:
            for old, new in moves:
                if old.exists():
                    old.rename(new)
                    done.append((old, new))
        except OSError:
            for old, new in reversed(done):
                new.rename(old)
            raise
        _flush(output)


def _flush(path: Path) -> None:
    """Onto the disk itself, so that no crash can leave a published file with a hole."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
