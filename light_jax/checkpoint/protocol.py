"""The commit protocol: a tag is written atomically, whole or not there.

    state of the tag    in DIR                                 a crash here leaves

    writing             .TAG.writing/ MARK TAG.*               the old tag; recover() discards this
        commit()        flush; rename .TAG.writing -> .TAG.committed; sync
    committed           .TAG.committed/ MARK TAG.*             the new tag; recover() publishes it
        publish()       rename TAG.config.json -> .TAG.deleting; sync     the rest is no tag now
                        move TAG.state; sync
                        the same for the average of the weights, TAG.ema
                        remove TAG's old index and parts, move TAG's weights, their index last; sync
                        remove .TAG.deleting; sync
                        move TAG.config.json; sync             last in: the three are whole
                        remove MARK and .TAG.committed; sync
    published           TAG.state/ TAG.safetensors TAG.config.json   (or the weights in parts)
        delete()        rename TAG.config.json -> .TAG.deleting; sync
    deleting            .TAG.deleting TAG.state/ …             recover() completes this
                        remove TAG's weights, TAG.state; sync; remove .TAG.deleting; sync
    gone

Each function can be repeated after a crash at any point. The writer holds the directory's lock;
readers do not, and look for each member in .TAG.committed first (light_llm.checkpoint.layout).

Only what the run itself wrote is deleted or replaced (light_jax.checkpoint.ownership).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from light_jax.checkpoint.ownership import (
    MARK,
    check_place,
    deleting_file,
    in_the_way,
    is_committed_by,
    is_fresh,
    is_own_name,
    is_own_staging_name,
    may_empty,
    run_of_config,
)
from light_llm.checkpoint import parts
from light_llm.checkpoint.layout import CONFIG, STATE, average_there, committed_dir
from light_llm.checkpoint.parts import AVERAGE, INDEX, WEIGHTS
from light_llm.errors import UserError
from light_llm.files import given
from light_llm.files.disk import Lock, create, flush, locked, remove, sync


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
    """Check the lock before something is written, moved or deleted in the directory.

    Raises:
        UserError: the folder is not the one that was locked, or somebody removed the lock.
    """
    lock.check(
        f"checkpoint_dir={str(directory)!r} is no longer the folder that this run locked: it was "
        "moved or replaced, or its .lock was removed. Nothing more is written there; put the "
        "folder back, and continue with --resume auto"
    )


def writing_dir(directory: Path, tag: str) -> Path:
    return directory / f".{tag}.writing"


def start(directory: Path, tag: str, run: str) -> Path:
    """Make a folder for the members of `tag`, with only the run's mark in it.

    Raises:
        UserError: another run, or somebody else, made the one that is there.
    """
    staging = writing_dir(directory, tag)
    there = os.path.lexists(staging) and not staging.is_symlink()
    if there and not may_empty(staging, run, fresh=is_fresh(directory)):
        raise in_the_way(staging)
    discard(staging)
    staging.mkdir()
    with create(staging / MARK) as file:
        file.write(json.dumps({"run": run}).encode())
        file.flush()
        os.fsync(file.fileno())
    return staging


def discard(folder: Path) -> None:
    """Delete a folder that a run writes in, its mark last: what a crash leaves of it has an owner.

    Only the link is deleted if it is one.
    """
    if folder.is_dir() and not folder.is_symlink():
        for entry in folder.iterdir():
            if entry.name != MARK:
                remove(entry)
    remove(folder)


def commit(directory: Path, tag: str, run: str, *, replacing: bool = False) -> None:
    """Commit a staged tag: from here on a reader finds it, and a crash cannot remove it.

    Args:
        replacing: the user asked for the tag to be replaced, whoever wrote it.

    Raises:
        UserError: something that another run wrote is in its place.
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
    """Move a staged report to its place, with its mark in it.

    It replaces an earlier report of this run, or of a run that left no tag.

    Raises:
        UserError: something else is in its place.
    """
    staging, folder = writing_dir(directory, name), directory / name
    flush(staging)
    if os.path.lexists(folder) and not may_empty(folder, run, fresh=is_fresh(directory)):
        raise in_the_way(folder)
    discard(folder)
    os.rename(staging, folder)
    sync(directory)


def link(directory: Path, tag: str, other: str, run: str) -> None:
    """Stage the members of `tag` for another tag as well: the same files under other names.

    Files are never changed in place, so the two can share them; where a file system has no hard
    links they are copied. An index, which names the parts, is written anew.
    """
    source, target = writing_dir(directory, tag), start(directory, other, run)
    for path in sorted(source.rglob("*")):
        copy = target / str(path.relative_to(source)).replace(tag, other, 1)
        if path.name == MARK:
            continue
        if path.is_dir():
            copy.mkdir()
            continue
        if parts.is_index(path):
            with create(copy) as file:
                named = parts.tag_of_file(copy.name)
                assert named is not None
                file.write(parts.index_for(path, named).encode())
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
        state = committed / f"{tag}{STATE}"
        if state.exists():
            remove(directory / state.name)
            os.rename(state, directory / state.name)
        if _has_average(config):
            _place_weights(committed, directory, f"{tag}{AVERAGE}")
        else:  # the tag that this one replaces may have had one
            for path in average_there(directory, tag):
                path.unlink()
        _place_weights(committed, directory, tag)
        sync(directory)
        if os.path.lexists(deleting):
            deleting.unlink()
            sync(directory)
        os.replace(config, directory / config.name)
    sync(directory)
    (committed / MARK).unlink(missing_ok=True)
    committed.rmdir()
    sync(directory)


def _has_average(config: Path) -> bool:
    """Whether the record of a staged tag lists an average of its weights; some of it may be placed
    already."""
    return any(map(parts.is_average, given.read_json(config)["checkpoint"]["files"]))


def _place_weights(committed: Path, directory: Path, tag: str) -> None:
    """Move the weights that are still staged, one file or parts with an index, to their place.

    What goes last there, the file or the index, is staged until all else is done, and so says what
    is left to do. An old index goes first: it must not name new parts.
    """
    last = committed / f"{tag}{WEIGHTS}"
    if not last.exists():
        last = committed / f"{tag}{INDEX}"
    if not last.exists():
        return
    new = {last.name, *(parts.read_index(last).names if parts.is_index(last) else ())}
    there = parts.files_there(directory, tag)
    old = [path for path in there if parts.is_index(path) or path.name not in new]
    for path in old:
        path.unlink()
    staged = [path for path in parts.files_there(committed, tag) if path != last]
    for path in staged:
        os.replace(path, directory / path.name)
    if old or parts.is_index(last):
        sync(directory)
    os.replace(last, directory / last.name)


def _publish_if_own(directory: Path, tag: str, run: str) -> None:
    """Publish a committed folder that this run left.

    Raises:
        UserError: another run, or somebody else, left it.
    """
    committed = committed_dir(directory, tag)
    if committed.is_symlink():  # not made by a run; what it leads to stays
        committed.unlink()
    elif is_committed_by(committed, tag, run):
        publish(directory, tag)
    else:
        raise in_the_way(committed)


def delete(directory: Path, tag: str, run: str) -> None:
    """Remove a tag that `run` wrote, config.json first, so that half a tag is never read.

    The .TAG.deleting that config.json becomes stays until the end: it names the run that wrote the
    rest. Another run's tag is left.
    """
    config, deleting = directory / f"{tag}{CONFIG}", deleting_file(directory, tag)
    if os.path.lexists(config):
        if run_of_config(config) != run or os.path.lexists(deleting):
            return
        os.rename(config, deleting)
        sync(directory)
    elif run_of_config(deleting) != run:
        return
    remove_members(directory, tag)
    sync(directory)
    deleting.unlink()
    sync(directory)


def remove_members(directory: Path, tag: str) -> None:
    """Delete the weights and their average, in whichever form, and the state of a tag."""
    for path in (*parts.files_there(directory, tag), *average_there(directory, tag)):
        path.unlink(missing_ok=True)
    remove(directory / f"{tag}{STATE}")


def recover(directory: Path, run: str | None) -> None:
    """Complete what `run` committed or began to delete; discard what it had not committed.

    What other runs left stays, unless the directory has no tag: then what they were writing goes.

    Args:
        run: None if it is new here.
    """
    fresh, owner = is_fresh(directory), run or ""
    for committed in sorted(directory.glob(".*.committed")):
        with contextlib.suppress(UserError):
            _publish_if_own(directory, _tag_of(committed), owner)
    for writing in sorted(directory.glob(".*.writing")):
        tag = _tag_of(writing)
        own = is_own_staging_name(tag) and may_empty(writing, owner, fresh=fresh)
        if own or writing.is_symlink():
            discard(writing)
    for deleting in sorted(directory.glob(".*.deleting")):
        tag = _tag_of(deleting)
        if is_own_name(tag) and run_of_config(deleting) == owner:
            if (directory / f"{tag}{CONFIG}").exists():
                deleting.unlink()  # the tag was replaced since
            else:
                delete(directory, tag, owner)


def _tag_of(path: Path) -> str:
    return path.name[1:].rpartition(".")[0]
