"""Remote objects on this machine: each is fetched once, when it is first needed, and kept.

A copy's name has a digest of its URL, size and state at the store (ETag, times), so a changed
object has another copy. A copy appears whole: it is written beside, compared in size, flushed and
renamed. The file that is written is locked meanwhile, so of several processes one fetches and the
others wait. What was not used for longest goes when there is more than LIGHT_LLM_DATA_CACHE_GB.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path

from light_llm.errors import UserError
from light_llm.files import given, remote, urls
from light_llm.files.disk import sync
from light_llm.files.userpath import user_cache

FOLDER, LIMIT = "LIGHT_LLM_DATA_CACHE", "LIGHT_LLM_DATA_CACHE_GB"
DEFAULT_GB = 200
AT_ONCE = 4
IN_USE = 60.0  # seconds: a copy that was used since is not deleted, since it may be read now
PART, SPARE = ".part", 2**30

_lock = threading.Lock()
_versions: dict[str, remote.Version] = {}
_coming: dict[str, Future[Path]] = {}
_slots = threading.Semaphore(AT_ONCE)


class Abandoned(Exception):
    """Whoever waited does not want the copy any more."""


def version(url: str) -> remote.Version:
    """The state of an object when this process first looked: the one that it reads to its end."""
    if url not in _versions:
        _versions.setdefault(url, remote.version(url))  # another thread may have looked first
    return _versions[url]


def look_again(url: str) -> None:
    """Let the object's state be what it is now: for a reader that begins."""
    _versions[url] = remote.version(url)


def kept(url: str) -> Path | None:
    """The copy of an object, if it is here; it counts as used now."""
    path = _path(url)
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode) or found.st_size != version(url).size:
        return None
    with contextlib.suppress(OSError):  # it may be another user's, or be deleted just now
        os.utime(path, ns=(time.time_ns(), found.st_mtime_ns))
    return path


def local(url: str, unless: threading.Event | None = None) -> Path:
    """The copy of an object, fetched if it is not here.

    Raises:
        Abandoned: `unless` was set meanwhile.
        UserError: it cannot be fetched, is no longer what it was, or there is no place for it.
    """
    while True:
        if (path := kept(url)) is not None:
            return path
        coming = want(url)
        while unless is None or not unless.is_set():
            with contextlib.suppress(NotYet):
                return coming.result(timeout=None if unless is None else 0.1)
        raise Abandoned


def want(url: str) -> Future[Path]:
    """Begin to fetch an object in the background, unless that goes on or is done.

    The threads are daemons: a process that ends does not wait for them.
    """
    with _lock:
        if url in _coming:
            return _coming[url]
        coming = _coming[url] = Future()
    threading.Thread(target=_bring, args=(url, coming), name="light-fetch", daemon=True).start()
    return coming


def _bring(url: str, coming: Future[Path]) -> None:
    try:
        with _slots:
            path = kept(url) or _fetch(url)
    except BaseException as error:
        with _lock:
            del _coming[url]  # the next that needs it tries again
        coming.set_exception(error)
    else:
        with _lock:
            del _coming[url]
        coming.set_result(path)


def _fetch(url: str) -> Path:
    path, wanted = _path(url), version(url)
    part = path.with_name(path.name + PART)
    try:
        with _locked(part):
            if (there := kept(url)) is not None:  # another process was faster
                part.unlink(missing_ok=True)
                return there
            _make_room(path.parent, wanted.size)
            remote.download(url, wanted.size, part)
            if remote.version(url) != wanted:
                part.unlink(missing_ok=True)
                raise UserError(
                    f"{url}: the object changed since it was first looked at; put back the one "
                    "that was there, or start again with the new one"
                )
            sync(part)
            part.rename(path)
            return path
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()  # it takes space on a full disk
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise UserError(
            f"{url}: its copy of {wanted.size:,} bytes cannot be written to {path.parent} "
            f"({error.strerror or error}); {'free some space, or ' if full else ''}name a folder "
            f"on another disk in {FOLDER}"
        ) from None


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[None]:
    """Hold the lock of the file that an object is written to; wait for who holds it."""
    while True:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            held = os.fstat(file.fileno())
            try:
                same = os.path.samestat(held, os.lstat(part))
            except FileNotFoundError:  # its holder renamed it, so the copy is there
                same = False
            if same:
                yield
                return
        # else this lock guards nothing any more: look again


def folder() -> Path:
    """Where copies are, made if it is missing.

    Raises:
        UserError: it cannot be made, or the variables that say where and how much are wrong.
    """
    named = os.environ.get(FOLDER)
    base = None if named else user_cache()
    if not named and base is None:
        raise UserError(f"there is no home folder to keep shards in; name one in {FOLDER}")
    place = Path(named) if named else base / "light-llm" / "data"  # type: ignore[operator]
    if not place.is_absolute():
        raise UserError(f"{FOLDER}={str(place)!r} must begin with /")
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{place}: shards cannot be kept there ({error.strerror}); name a folder in {FOLDER}"
        ) from None
    return place


def limit() -> int:
    """Bytes of all copies together.

    Raises:
        UserError: the variable is no number above 0.
    """
    text = os.environ.get(LIMIT) or str(DEFAULT_GB)
    if not re.fullmatch(r"[0-9]{1,7}(\.[0-9]+)?", text) or not float(text):
        raise UserError(f"{LIMIT}={text!r} must be a number of gigabytes above 0")
    return int(float(text) * 1e9)


def _path(url: str) -> Path:
    wanted = version(url)
    told = f"{url}\n{wanted.size}\n{wanted.state}"
    digest = hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()
    name = re.sub(r"[^A-Za-z0-9._-]", "_", urls.name(url))[-80:]
    return folder() / f"{digest[:32]}-{name}"


def _make_room(place: Path, size: int) -> None:
    """Delete what was not used for longest, until `size` bytes more are allowed and fit."""
    found = []
    with os.scandir(place) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if _COPY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    found.append((entry.stat(follow_symlinks=False), Path(entry.path)))
    total, most = sum(each.st_size for each, _ in found), limit()
    for each, path in sorted(found, key=lambda one: one[0].st_atime_ns):
        free = shutil.disk_usage(place).free
        if total + size <= most and free >= size + min(SPARE, size):
            return
        if time.time() - each.st_atime > IN_USE and _unlocked(path):
            path.unlink(missing_ok=True)
            total -= each.st_size


_COPY = re.compile(r"[0-9a-f]{32}-[A-Za-z0-9._-]+")


def _unlocked(path: Path) -> bool:
    """Whether nobody writes a file at this moment; a copy that is whole is never locked."""
    if path.suffix != PART:
        return True
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def copy_of_folder(url: str, most_files: int = 100) -> Path | None:
    """The small files of a remote folder, as a folder here; None if there are none.

    Raises:
        UserError: they cannot be fetched.
    """
    objects = [each for each in remote.listed(url, "*") if given.is_name(urls.name(each))]
    if not objects or not remote.is_folder(url):
        return None
    objects = objects[:most_files]
    states = "".join(f"{each} {version(each)}\n" for each in objects)
    place = folder() / f"folder-{hashlib.sha256(states.encode()).hexdigest()[:32]}"
    if place.is_dir():
        return place
    staging = place.with_name(f"{place.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    try:
        for each in objects:
            if version(each).size > given.LARGE:
                raise UserError(f"{each}: has more than {given.LARGE:,} bytes, which is the limit")
            remote.download(each, version(each).size, staging / urls.name(each))
        with contextlib.suppress(OSError):  # another process was faster
            staging.rename(place)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return place
