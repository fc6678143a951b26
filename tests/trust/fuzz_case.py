"""One command in a fork of a process that has imported all, its limits, and what came of it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import re
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from fuzz_targets import MAINS, Command

SHOWN = 25_000
"""Characters of stderr at most."""
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_DAC_CAPABILITIES = (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: what lets root read any file


@dataclass
class Limits:
    seconds: float = 40.0
    tasks: int = 200  # threads and processes
    mebibytes: int = 1500  # that a case may hold more than the server that it is forked from


@dataclass
class Ended:
    code: int  # negative: the signal that ended it
    seconds: float
    mebibytes: int  # at its peak, more than the server
    stderr: str
    failures: list[str] = field(default_factory=list)


def run(
    sandbox: Path, command: Command, limits: Limits, before: Callable[[], None] | None = None
) -> Ended:
    """Run a command in sandbox/given until it ends or the time is over."""
    log = sandbox / "log"
    log.mkdir(exist_ok=True)
    start, held = time.monotonic(), _rss()
    pid = os.fork()
    if pid == 0:
        _become(sandbox, command, limits, before)
    failures = []
    if not (ended := wait_for(pid, limits.seconds, limits.tasks)):
        failures.append("hang" if _tasks(pid) <= limits.tasks else "threads or processes in masses")
        os.kill(pid, signal.SIGTERM)
        if not (ended := wait_for(pid, 4)):
            failures[-1] += ", deaf to SIGTERM"
            os.kill(pid, signal.SIGKILL)
            while not (ended := wait_for(pid, 5)):
                pass
    status, usage = ended
    try:  # workers that it left
        os.killpg(pid, signal.SIGKILL)
        failures.append("left processes")
    except ProcessLookupError:
        pass
    stderr = (log / "stderr").read_text(errors="backslashreplace")
    more = max(0, usage.ru_maxrss - held) // 1024
    code = os.waitstatus_to_exitcode(status)
    told = Ended(code, time.monotonic() - start, more, stderr, failures)
    if not failures:
        failures += _broken(told, command)
    if more > limits.mebibytes:
        failures.append(f"memory: {more:,} MiB")
    if (log / "network").exists():
        failures.append(f"asks the network: {(log / 'network').read_text()[:80]}")
    return told


def wait_for(
    pid: int, seconds: float, tasks: int | None = None
) -> tuple[int, resource.struct_rusage] | None:
    """How it ended; None: it did not, or it has more than so many threads and processes."""
    end, counted = time.monotonic() + seconds, time.monotonic()
    while True:
        there, status, usage = os.wait4(pid, os.WNOHANG)
        if there:
            return status, usage
        if time.monotonic() > end:
            return None
        if tasks is not None and time.monotonic() > counted + 0.3:
            counted = time.monotonic()
            if _tasks(pid) > tasks:
                return None
        time.sleep(0.005)


def _tasks(pid: int) -> int:
    """Threads of a process and of its children."""
    count = 0
    for task in Path(f"/proc/{pid}/task").glob("*"):
        count += 1
        with contextlib.suppress(OSError):
            count += sum(map(_tasks, map(int, (task / "children").read_text().split())))
    return count


def _broken(ended: Ended, command: Command) -> list[str]:
    """The rules that hold for every command, whatever it reads."""
    found = []
    if ended.code not in command.codes:
        found.append(f"exit code {ended.code}")
    if "Traceback (most recent call last)" in ended.stderr:
        lines = [line for line in ended.stderr.splitlines() if re.match(r"[\w.]+(:|$)", line)]
        found.append(f"traceback: {lines[-1][:160] if lines else ''}")
    if "panicked at" in ended.stderr:
        found.append("a panic is printed")
    if len(ended.stderr) > SHOWN:
        found.append(f"{len(ended.stderr):,} characters on stderr")
    if unseen := _UNSEEN.search(ended.stderr):
        found.append(f"control character {unseen[0]!a} on stderr")
    if ended.code == 2 and not ended.stderr.strip():
        found.append("exit code 2 without a message")
    return found


def _rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _become(
    sandbox: Path, command: Command, limits: Limits, before: Callable[[], None] | None
) -> NoReturn:
    """The command, in this process, which ends with it."""
    code = 1
    try:
        os.setsid()
        _redirect(sandbox / "log")
        os.chdir(sandbox / "given")
        os.environ |= {"HOME": str(sandbox / "home"), "TMPDIR": str(sandbox / "tmp")}
        limit(limits)
        sys.addaudithook(_no_network(sandbox / "log/network"))
        sys.argv = list(command.args)
        main = importlib.import_module(MAINS[command.args[0]]).main
        if before is not None:
            before()
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    try:
        gc.collect()  # what complains of its own end, as asyncio's tasks do, does so here
        sys.stdout.flush()
        sys.stderr.flush()
        threading._shutdown()  # type: ignore[attr-defined]  # a thread that hangs holds a process
    finally:
        os._exit(code)


def _redirect(log: Path) -> None:
    for number, name in enumerate(("/dev/null", log / "stdout", log / "stderr")):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(name, flags, 0o644), number)
    sys.stdin = os.fdopen(0, "r", encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def limit(limits: Limits) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    room = used + limits.mebibytes * 2**20 + 6 * 2**30  # libraries reserve what they never use
    seconds = int(limits.seconds * 3)
    for kind, limit in (
        (resource.RLIMIT_AS, room),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 2**30),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


def _no_network(log: Path) -> Callable[[str, tuple[object, ...]], None]:
    def hook(event: str, args: tuple[object, ...]) -> None:
        asks = event == "socket.getaddrinfo" or (
            event == "socket.connect" and isinstance(args[1], tuple)
        )
        if asks:
            log.write_text(f"{event} {args[-1] if event == 'socket.connect' else args[0]}")
            raise OSError("there is no network in a fuzz case")

    return hook


def without_privileges() -> None:
    """Let the modes of files hold for root as well, as for every other user."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for number in _DAC_CAPABILITIES:
        libc.prctl(24, number, 0, 0, 0)  # PR_CAPBSET_DROP: nor do those that it starts get it
        for index in range(3):
            sets[index] &= ~(1 << number)
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")
