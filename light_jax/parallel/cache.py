"""Compiled programs, kept from one start to the next.

A compiled program is code, and JAX runs what it finds. So they lie in a folder that only this user
can write to, and that nobody else can have put there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import stat
import tempfile
from pathlib import Path
from typing import Any

import jax

from light_jax.parallel.hosts import is_main
from light_llm.errors import UserError
from light_llm.files.userpath import user_cache
from light_llm.printing import tell

try:
    import filelock
except ImportError:  # then the folder grows without bound
    filelock = None  # type: ignore[assignment]

SWITCH = "LIGHT_LLM_COMPILATION_CACHE"
WORTH_KEEPING = 0.2  # seconds; an evaluation, and the first state, take less than JAX's own 1 s
THRESHOLD = "jax_persistent_cache_min_compile_time_secs"
LARGEST = 5 * 2**30  # bytes; beyond it, the programs go that were not used for longest

_hits = 0


def keep_compiled() -> None:
    """Keep what takes WORTH_KEEPING seconds or more to compile, for the user's next starts.

    Where the user named a folder of their own (JAX_COMPILATION_CACHE_DIR) or turned it off
    (LIGHT_LLM_COMPILATION_CACHE=off), nothing is changed. A folder that cannot be used is a note:
    no run needs it.

    Raises:
        UserError: LIGHT_LLM_COMPILATION_CACHE is neither on nor off.
    """
    switch = os.environ.get(SWITCH) or "on"
    if switch not in ("on", "off"):
        raise UserError(
            f"{SWITCH}={switch!r} must be on or off; JAX_COMPILATION_CACHE_DIR names another folder"
        )
    with contextlib.suppress(AssertionError, ValueError):  # it is not there yet
        jax.monitoring.unregister_event_listener(_count)
    jax.monitoring.register_event_listener(_count)
    settings: Any = jax.config  # its names are made as it is imported
    named = "JAX_COMPILATION_CACHE_DIR" in os.environ or settings.jax_compilation_cache_dir
    if switch == "off" or named or not settings.jax_enable_compilation_cache:
        return
    try:
        folder = _private_folder()
        _tidy(folder)
    except (OSError, RuntimeError, NotImplementedError) as error:
        if is_main():
            reason = getattr(error, "strerror", None) or error
            where = getattr(error, "filename", None) or user_cache() or "no home folder"
            tell(
                f"note: compiled programs are not kept: {where}: {reason}; XDG_CACHE_HOME names "
                f"another place, and {SWITCH}=off turns this off"
            )
        return
    if filelock is not None and settings.jax_compilation_cache_max_size == -1:
        settings.update("jax_compilation_cache_max_size", LARGEST)
    if THRESHOLD.upper() not in os.environ:
        settings.update(THRESHOLD, WORTH_KEEPING)
    settings.update("jax_compilation_cache_dir", str(folder))


def hits() -> int:
    """How many programs were found instead of compiled, since the first `keep_compiled`."""
    return _hits


def _count(event: str, **_: Any) -> None:
    global _hits
    _hits += event == "/jax/compilation_cache/cache_hits"


def _private_folder() -> Path:
    """The folder, made if it is missing.

    A folder for each kind of CPU: homes are shared between machines, and a program for one CPU can
    have instructions that another lacks.

    Raises:
        OSError: it cannot be made or written, or others can write to it or put another in its
            place.
    """
    base = user_cache()
    if base is None:
        raise OSError("this user has none")
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = base.resolve()
    for above in (folder, *folder.parents):
        _check_above(above)
    for name in ("light-llm", "jax", _kind_of_cpu()):
        folder = folder / name
        folder.mkdir(mode=0o700, exist_ok=True)
        _check_own(folder)
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(bytes(4096))
    return folder


def _check_own(folder: Path) -> None:
    """Refuse a folder that is not this user's own, or that others can write to."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise _refusal(folder, "is not a folder")
    if found.st_uid != os.geteuid():
        raise _refusal(folder, "belongs to another user")
    if found.st_mode & 0o022:
        raise _refusal(folder, "others can write to it (chmod go-w)")


def _check_above(folder: Path) -> None:
    """Refuse a folder in which others could exchange the one that is ours.

    A group may write if it is the user's own: some systems give each user one, and share it.
    """
    found = folder.stat()
    if found.st_uid not in (0, os.geteuid()):
        raise _refusal(folder, "belongs to another user")
    own_group = found.st_gid in (0, os.getegid())
    writable = found.st_mode & (0o002 if own_group else 0o022)
    if writable and not found.st_mode & stat.S_ISVTX:
        raise _refusal(folder, "others can write to it (chmod go-w)")


def _refusal(folder: Path, why: str) -> OSError:
    return OSError(None, why, str(folder))


def _kind_of_cpu() -> str:
    """A name that CPUs with the same instructions share."""
    told = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told += next((line for line in lines if line.lower().startswith(("flags", "feat"))), "")
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def _tidy(folder: Path) -> None:
    """Delete programs whose writing was cut short: JAX would stumble over them at each start.

    JAX notes the time of each use in a second file, which it writes last.
    """
    if filelock is None:
        return
    try:
        with filelock.FileLock(folder / ".lockfile", timeout=0):  # JAX's own
            names = {path.name for path in folder.iterdir()}
            for name in names:
                stem, dash, kind = name.rpartition("-")
                partner = f"{stem}{dash}{'atime' if kind == 'cache' else 'cache'}"
                if kind in ("cache", "atime") and partner not in names:
                    (folder / name).unlink(missing_ok=True)
    except filelock.Timeout:  # another start is writing
        pass
