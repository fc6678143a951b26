"""The commit protocol: a tag is whole or not there, whatever happens in between.

    state of the tag    in DIR                                 a crash here leaves

    writing             .TAG.writing/ TAG.*                    the old tag; recover() discards this
        commit()        flush; rename .TAG.writing -> .TAG.committed; sync
    committed           .TAG.committed/ TAG.*                  the new tag; recover() publishes it
        publish()       unlink DIR/TAG.config.json; sync       first out: the rest is no tag now
                        move TAG.state, TAG.safetensors; sync
                        move TAG.config.json; sync             last in: the three are whole
                        rmdir .TAG.committed; sync
    published           TAG.state/ TAG.safetensors TAG.config.json
        delete()        TAG.config.json; sync; TAG.safetensors, TAG.state
    gone

Each function can be repeated after a crash at any point. The writer holds the directory's lock;
readers do not, and look for each member in .TAG.committed first (light_llm.checkpoint.layout).
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from light_llm.checkpoint.layout import CONFIG, STATE, WEIGHTS, committed_dir
from light_llm.files.disk import Lock, flush, locked, remove, sync

STEP_TAG = re.compile(r"step(\d{7,})")


def step_tag(step: int) -> str:
    return f"step{step:07d}"


def is_pattern(path: Path) -> bool:
    """Whether orbax would take the path for a pattern, and write a state that it cannot read."""
    return bool(set("[]*?") & set(str(path.absolute())))


def is_own_name(tag: str) -> bool:
    """Whether a run writes tags of that name."""
    return tag in ("best", "final") or STEP_TAG.fullmatch(tag) is not None


def one_writer(directory: Path) -> AbstractContextManager[Lock]:
    """Lock `directory` for one run.

    Raises:
        UserError: another run holds it.
    """
    return locked(
        directory / ".lock",
        f"checkpoint_dir={str(directory)!r} is being written by another run; wait for it, or use "
        "another checkpoint_dir",
    )


def writing_dir(directory: Path, tag: str) -> Path:
    return directory / f".{tag}.writing"


def start(directory: Path, tag: str) -> Path:
    """An empty folder to write the members of `tag` into."""
    staging = writing_dir(directory, tag)
    remove(staging)
    staging.mkdir()
    return staging


def commit(directory: Path, tag: str) -> None:
    """From here on the tag is there: a reader finds it, a crash cannot take it away."""
    flush(writing_dir(directory, tag))
    committed = committed_dir(directory, tag)
    if committed.exists():  # left by a crash, and never finished
        publish(directory, tag)
    os.rename(writing_dir(directory, tag), committed)
    sync(directory)
    publish(directory, tag)


def link(directory: Path, tag: str, other: str) -> None:
    """Stage the members of `tag` as those of another tag too, the same files under other names.

    Files are never changed in place, so the two can share them; where a file system has no hard
    links they are copied.
    """
    source, target = writing_dir(directory, tag), start(directory, other)
    for path in sorted(source.rglob("*")):
        copy = target / str(path.relative_to(source)).replace(tag, other, 1)
        if path.is_dir():
            copy.mkdir()
            continue
        try:
            os.link(path, copy)
        except OSError:
            shutil.copy2(path, copy)


def publish(directory: Path, tag: str) -> None:
    """Move a committed tag's members to their places, config.json first out and last in."""
    committed = committed_dir(directory, tag)
    if committed.is_symlink():  # none of ours, and what it leads to is not ours to move
        committed.unlink()
        return
    config = committed / f"{tag}{CONFIG}"
    if config.exists():
        (directory / config.name).unlink(missing_ok=True)
        sync(directory)
        state, weights = committed / f"{tag}{STATE}", committed / f"{tag}{WEIGHTS}"
        if state.exists():
            remove(directory / state.name)
            os.rename(state, directory / state.name)
        if weights.exists():
            os.replace(weights, directory / weights.name)
        sync(directory)
        os.replace(config, directory / config.name)
    sync(directory)
    committed.rmdir()
    sync(directory)


def delete(directory: Path, tag: str) -> None:
    """Remove a tag, config.json first: half of it is never taken for the whole, and its state last:
    a weights file alone is somebody's, not the rest of a tag."""
    (directory / f"{tag}{CONFIG}").unlink(missing_ok=True)
    sync(directory)
    (directory / f"{tag}{WEIGHTS}").unlink(missing_ok=True)
    remove(directory / f"{tag}{STATE}")
    sync(directory)


def recover(directory: Path) -> None:
    """Complete what was committed, discard what was not."""
    for committed in sorted(directory.glob(".*.committed")):
        publish(directory, committed.name[1:].removesuffix(".committed"))
    for writing in sorted(directory.glob(".*.writing")):
        remove(writing)
    for state in sorted(directory.glob(f"step*{STATE}")):  # half-deleted: the state goes last
        tag = state.name.removesuffix(STATE)
        if STEP_TAG.fullmatch(tag) and not (directory / f"{tag}{CONFIG}").exists():
            delete(directory, tag)
