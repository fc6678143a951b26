"""The commit protocol: a tag is whole or not there, whatever happens in between.

    state of the tag    in DIR                                 a crash here leaves

    writing             .TAG.writing/ MARK TAG.*               the old tag; recover() discards this
        commit()        flush; rename .TAG.writing -> .TAG.committed; sync
    committed           .TAG.committed/ MARK TAG.*             the new tag; recover() publishes it
        publish()       rename TAG.config.json -> .TAG.deleting; sync     the rest is no tag now
                        move TAG.state, TAG.safetensors; sync
                        remove .TAG.deleting; sync
                        move TAG.config.json; sync             last in: the three are whole
                        remove MARK and .TAG.committed; sync
    published           TAG.state/ TAG.safetensors TAG.config.json
        delete()        rename TAG.config.json -> .TAG.deleting; sync
    deleting            .TAG.deleting TAG.state/ …             recover() completes this
                        remove TAG.safetensors, TAG.state; sync; remove .TAG.deleting; sync
    gone

Each function can be repeated after a crash at any point. The writer holds the directory's lock;
readers do not, and look for each member in .TAG.committed first (light_llm.checkpoint.layout).

Nothing is deleted or replaced but what tells that the run wrote it: a staging folder by its MARK, a
tag by its config.json, or by the .TAG.deleting that this became, or by the note in its state.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from light_jax.checkpoint.state import run_of_state
from light_llm.checkpoint.layout import CONFIG, STATE, WEIGHTS, committed_dir, locate, tags
from light_llm.errors import UserError
from light_llm.files import given
from light_llm.files.disk import Lock, create, flush, locked, remove, sync

STEP_TAG = re.compile(r"step(\d{7,})")
NONFINITE = re.compile(r"nonfinite-step\d+")
MARK = ".light-llm.json"
"""A file in each folder that a run makes to write in: which run that is."""


def step_tag(step: int) -> str:
    return f"step{step:07d}"


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


def check_lock(directory: Path, lock: Lock) -> None:
    """To be called before something is written, moved or deleted in the directory.

    Raises:
        UserError: it is no longer the folder that was locked, or somebody removed the lock.
    """
    lock.check(
        f"checkpoint_dir={str(directory)!r} is no longer the folder that this run locked: it was "
        "moved or replaced, or its .lock was removed. Nothing more is written there; put the "
        "folder back, and continue with --resume auto"
    )


def writing_dir(directory: Path, tag: str) -> Path:
    return directory / f".{tag}.writing"


def deleting_file(directory: Path, tag: str) -> Path:
    """What a tag's config.json becomes while the tag is deleted."""
    return directory / f".{tag}.deleting"


def start(directory: Path, tag: str, run: str) -> Path:
    """A folder with nothing but the run's mark in it, to write the members of `tag` into.

    Raises:
        UserError: there is one that this run did not make.
    """
    staging = writing_dir(directory, tag)
    there = os.path.lexists(staging) and not staging.is_symlink()
    if there and not _may_empty(staging, run, fresh=_is_fresh(directory)):
        raise _in_the_way(staging)
    remove(staging)
    staging.mkdir()
    with create(staging / MARK) as file:
        file.write(json.dumps({"run": run}).encode())
        file.flush()
        os.fsync(file.fileno())
    return staging


def run_of(folder: Path) -> str | None:
    """The run whose mark is in a folder; None without one."""
    mark = folder / MARK
    if folder.is_symlink() or mark.is_symlink():
        return None
    try:
        return _text(given.read_json(mark), "run")
    except UserError:
        return None


def _may_empty(folder: Path, run: str, *, fresh: bool) -> bool:
    """Whether a folder is what `run` was writing in; in a directory without any tag, what any run
    was, since that one came to nothing. A crash can leave the folder without a mark, or with half
    of one, but then with nothing else."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    if all(entry.name == MARK for entry in folder.iterdir()):
        return True
    owner = run_of(folder)
    return owner is not None and (fresh or owner == run)


def _is_fresh(directory: Path) -> bool:
    """Whether no run has a tag there."""
    names = [tag for tag in tags(directory) if is_own_name(tag)]
    return all(run_of_config(locate(directory / tag).config) is None for tag in names)


def _in_the_way(path: Path) -> UserError:
    return UserError(
        f"{path}: is in the way, and nothing tells that this run wrote it; move it away (a save "
        "that was cut short, of an older version or of another run, can be deleted)"
    )


def check_place(directory: Path, tag: str, run: str) -> None:
    """That a tag may be written: none is there, or one of the same run, even half of it.

    Raises:
        UserError: what is there is somebody else's.
    """
    config, state = directory / f"{tag}{CONFIG}", directory / f"{tag}{STATE}"
    deleting = deleting_file(directory, tag)
    there = [
        path
        for path in (config, state, directory / f"{tag}{WEIGHTS}", deleting)
        if os.path.lexists(path) and not path.is_symlink()  # of a link, the link alone is replaced
    ]
    if deleting in there and run_of_config(deleting) != run:
        raise _in_the_way(deleting)
    half_moved = committed_dir(directory, tag) / config.name
    told = (run_of_config(config), run_of_config(deleting), run_of_config(half_moved))
    if there and run not in (*told, run_of_state(state)):
        raise _in_the_way(there[0])


def run_of_config(path: Path) -> str | None:
    """The run that a config.json of a tag names; None if it is not there or names none."""
    if path.is_symlink():
        return None
    try:
        record = given.read_json(path)
    except UserError:
        return None
    return _text(record.get("checkpoint"), "run") if isinstance(record, dict) else None


def _text(value: Any, key: str) -> str | None:
    text = value.get(key) if isinstance(value, dict) else None
    return text if isinstance(text, str) else None


def commit(directory: Path, tag: str, run: str, *, replacing: bool = False) -> None:
    """From here on the tag is there: a reader finds it, a crash cannot take it away.

    Args:
        replacing: the user asked for the tag to be replaced, whoever wrote it.

    Raises:
        UserError: something that another run wrote has its place.
    """
    flush(writing_dir(directory, tag))
    committed = committed_dir(directory, tag)
    if os.path.lexists(committed):  # left by a crash, and never finished
        _publish_if_own(directory, tag, run)
    if not replacing:
        check_place(directory, tag, run)
    os.rename(writing_dir(directory, tag), committed)
    sync(directory)
    publish(directory, tag)


def commit_report(directory: Path, name: str, run: str) -> None:
    """Put a staged folder that is no tag in its place, its mark in it; of a report of this run, or
    of one that came to nothing, it takes the place.

    Raises:
        UserError: something else has its place.
    """
    staging, folder = writing_dir(directory, name), directory / name
    flush(staging)
    if os.path.lexists(folder) and not _may_empty(folder, run, fresh=_is_fresh(directory)):
        raise _in_the_way(folder)
    remove(folder)
    os.rename(staging, folder)
    sync(directory)


def link(directory: Path, tag: str, other: str, run: str) -> None:
    """Stage the members of `tag` as those of another tag too, the same files under other names.

    Files are never changed in place, so the two can share them; where a file system has no hard
    links they are copied.
    """
    source, target = writing_dir(directory, tag), start(directory, other, run)
    for path in sorted(source.rglob("*")):
        copy = target / str(path.relative_to(source)).replace(tag, other, 1)
        if path.name == MARK:
            continue
        if path.is_dir():
            copy.mkdir()
            continue
        try:
            os.link(path, copy)
        except OSError:
            shutil.copy2(path, copy)


def publish(directory: Path, tag: str) -> None:
    """Move a committed tag's members to their places, config.json first out and last in."""
    committed, deleting = committed_dir(directory, tag), deleting_file(directory, tag)
    config = committed / f"{tag}{CONFIG}"
    if config.exists():
        old = directory / config.name
        if os.path.lexists(old):
            os.rename(old, deleting)
        sync(directory)
        state, weights = committed / f"{tag}{STATE}", committed / f"{tag}{WEIGHTS}"
        if state.exists():
            remove(directory / state.name)
            os.rename(state, directory / state.name)
        if weights.exists():
            os.replace(weights, directory / weights.name)
        sync(directory)
        if os.path.lexists(deleting):
            deleting.unlink()
            sync(directory)
        os.replace(config, directory / config.name)
    sync(directory)
    (committed / MARK).unlink(missing_ok=True)
    committed.rmdir()
    sync(directory)


def _publish_if_own(directory: Path, tag: str, run: str) -> None:
    """Publish a committed folder that this run left, or a run that came to nothing.

    Raises:
        UserError: it is somebody else's.
    """
    committed = committed_dir(directory, tag)
    if committed.is_symlink():  # none of ours, and what it leads to is not ours to move
        committed.unlink()
    elif _is_committed_by(committed, tag, run):
        publish(directory, tag)
    else:
        raise _in_the_way(committed)


def _is_committed_by(committed: Path, tag: str, run: str) -> bool:
    """By its config.json; without one all is published but for the folder."""
    if not committed.is_dir():
        return False
    config = committed / f"{tag}{CONFIG}"
    if config.exists():
        return run_of_config(config) == run
    return all(entry.name == MARK for entry in committed.iterdir())


def delete(directory: Path, tag: str, run: str) -> None:
    """Remove a tag of `run`, config.json first: half of it is never taken for the whole. What this
    becomes stays until the end, and tells what the rest is. A tag of another run is left."""
    config, deleting = directory / f"{tag}{CONFIG}", deleting_file(directory, tag)
    if os.path.lexists(config):
        if run_of_config(config) != run or os.path.lexists(deleting):
            return
        os.rename(config, deleting)
        sync(directory)
    elif run_of_config(deleting) != run:
        return
    (directory / f"{tag}{WEIGHTS}").unlink(missing_ok=True)
    remove(directory / f"{tag}{STATE}")
    sync(directory)
    deleting.unlink()
    sync(directory)


def recover(directory: Path, run: str | None) -> None:
    """Complete what `run` committed or began to delete, discard what it had not committed.

    What others left is left, but for what a run was writing that never made a tag: a directory
    without any tag has no run.

    Args:
        run: None for one that is new here.
    """
    fresh, owner = _is_fresh(directory), run or ""
    for committed in sorted(directory.glob(".*.committed")):
        with contextlib.suppress(UserError):
            _publish_if_own(directory, _tag_of(committed), owner)
    for writing in sorted(directory.glob(".*.writing")):
        tag = _tag_of(writing)
        own = is_own_name(tag) or NONFINITE.fullmatch(tag)
        if writing.is_symlink() or (own and _may_empty(writing, owner, fresh=fresh)):
            remove(writing)
    for deleting in sorted(directory.glob(".*.deleting")):
        tag = _tag_of(deleting)
        if is_own_name(tag) and run_of_config(deleting) == owner:
            if (directory / f"{tag}{CONFIG}").exists():
                deleting.unlink()  # of a tag that was replaced since
            else:
                delete(directory, tag, owner)


def _tag_of(path: Path) -> str:
    return path.name[1:].rpartition(".")[0]
