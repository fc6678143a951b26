"""Processes of the commands, forked from one that has imported what they will.

Half of what a tiny run takes is Python importing JAX and its libraries, and the suite starts some
hundreds of them. So a server is started in the same environment, imports what the command will, and
forks: each command is a process of its own, with its own arguments, folder, variables, files,
signals and exit. In an environment that is not that of the tests, the first start is an ordinary
one, since many have no second. A script of this folder is started like a command. A test about the
start itself calls `subprocess`.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
TRAINING = (
    *("light_jax.training.api", "light_jax.training.loop", "light_jax.training.check"),
    "jaxlib.mlir.dialects.mhlo",  # JAX imports it as it lowers a first program
)
SAVING = ("orbax.checkpoint", "light_jax.checkpoint.saver")
EVALUATION = ("light_jax.evaluation.evaluate", "light_jax.evaluation.on_jax")
IMPORTED = {
    "llm-train": ("light_jax.cli.train", *TRAINING, *SAVING),
    "llm-eval": ("light_jax.cli.eval", *EVALUATION),
    "llm-convert": ("light_jax.cli.convert", "light_llm.hf.export", "conversion"),
    "llm-parity": (
        "light_jax.cli.parity",
        "light_jax.parity.report",
        "light_jax.parity.checkpoint",
    ),
    "llm-preprocess": (
        *("light_llm.cli.preprocess", "light_llm.preprocess.pipeline"),
        *("pyarrow.compute", "pyarrow.parquet", "tokenizers"),
        "transformers.models.auto.tokenization_auto",
    ),
    "llm-run": ("light_llm.cli.run", "light_llm.models.transformer.model"),
    "joined.py": ("light_jax.parallel.hosts",),
    "reading_train.py": (*TRAINING, *SAVING),
}
# No import reads these. JAX and XLA do when a run joins others or asks for its devices.
LATER = {"JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "XLA_FLAGS", "SHARDS"}
OWN = {"PYTEST_CURRENT_TEST", "PYTEST_XDIST_TESTRUNUID", "COLUMNS", "LINES"} | LATER
BEFORE_A_PROGRAM = {"preexec_fn", "start_new_session", "process_group", "umask", "user", "pass_fds"}
_servers: dict[tuple, Server | None] = {}


class Process(subprocess.Popen):
    """`Popen` of a command of the project, which a server forks. Its pid is the command's own."""

    def __init__(self, args: list[Any], *, env: dict[str, str], **options: Any) -> None:
        """Every option but what a child does before its program runs."""
        if unknown := options.keys() & BEFORE_A_PROGRAM:
            raise TypeError(f"a command that may be forked has no {', '.join(unknown)}")
        self._server = _server_for(_name(args), env)
        super().__init__(args, env=env, **options)

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):  # type: ignore[no-untyped-def]
        if self._server is None:
            super()._execute_child(  # type: ignore[misc]
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest
            )
            return
        pipes = rest[3:9]  # of stdin, stdout and stderr, the ends to read from and to write to
        theirs = pipes[0], pipes[3], pipes[5]
        files = [number if own == -1 else own for number, own in enumerate(theirs)]
        request = {
            "argv": [str(arg) for arg in args],
            "cwd": os.path.abspath(cwd or "."),
            "env": env,
        }
        self._told = self._server.fork(request, files)
        self.pid = int(self._told.recv(32))
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._server is None:
            return super()._try_wait(wait_flags)  # type: ignore[misc]
        if wait_flags & os.WNOHANG and not select.select([self._told], [], [], 0)[0]:
            return 0, 0
        with self._told:
            return self.pid, int(self._told.recv(32))

    def _internal_poll(self, _deadstate=None, **_: Any):  # type: ignore[no-untyped-def]
        if self._server is None:
            return super()._internal_poll(_deadstate)  # type: ignore[misc]
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid:
                self._handle_exitstatus(status)  # type: ignore[attr-defined]
        return self.returncode


class Server:
    """A process that imported `modules`; it ends with the one that started it."""

    def __init__(self, modules: tuple[str, ...], env: dict[str, str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno()), *modules],
                env=env,
                cwd=BIN,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self._socket = ours
        atexit.register(self._end)

    def fork(self, request: dict[str, Any], files: list[int]) -> socket.socket:
        """Start a command. Its pid can be received at once, and its status at its end."""
        told, tell = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with tell:
            socket.send_fds(self._socket, [json.dumps(request).encode()], [*files, tell.fileno()])
        return told

    def _end(self) -> None:
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)


def _name(args: list[Any]) -> str:
    """The command's, or that of the script which Python runs."""
    return Path(args[str(args[0]) == sys.executable]).name


def _server_for(name: str, env: dict[str, str]) -> Server | None:
    modules = IMPORTED.get(name)
    key = (name, *_lasting(env))
    if modules is None or "linux" not in sys.platform:
        return None
    if key not in _servers and _lasting(env) != _lasting(os.environ):
        _servers[key] = None
        return None
    if _servers.get(key) is None:
        _servers[key] = Server(modules, env)
    return _servers[key]


def _lasting(env: Mapping[str, str]) -> list[tuple[str, str]]:
    """The variables that a server must have as the command has them."""
    return sorted(item for item in env.items() if item[0] not in OWN)


def _serve(channel: socket.socket) -> list[str]:
    """Fork a command for each request. Returns in the command, with its arguments."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that wait
    while True:
        message, numbers, *_ = socket.recv_fds(channel, 1 << 20, 4)
        if not message:
            os._exit(0)
        if os.fork():
            for number in numbers:
                os.close(number)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        channel.close()
        *files, tell = numbers
        pid = os.fork()
        if pid == 0:
            os.close(tell)
            return _become(json.loads(message), files)
        for number in files:
            os.close(number)
        os.write(tell, b"%d" % pid)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(BrokenPipeError):
            os.write(tell, b"%d" % status)
        os._exit(0)


def _become(request: dict[str, Any], files: list[int]) -> list[str]:
    for number, own in enumerate(files):
        os.dup2(own, number)
    for own in files:
        os.close(own)
    _open_standard_files()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    return request["argv"]


def _open_standard_files() -> None:
    """As Python does at its start; those of the server know what its own files could do."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before = getattr(sys, name)
        text = io.TextIOWrapper(
            open(number, "wb" if number else "rb", closefd=False),  # noqa: SIM115
            before.encoding,
            before.errors,
            line_buffering=number == 2 or os.isatty(number),
        )
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)


def main() -> None:
    number, *modules = sys.argv[1:]
    channel = socket.socket(fileno=int(number))
    for module in modules:
        importlib.import_module(module)
    sys.argv = _serve(channel)
    _end(_run(_name(sys.argv)))


def _run(name: str) -> int:
    """The exit code of the command or script; what else it raises, Python prints."""
    try:
        if name.endswith(".py"):
            del sys.argv[0]  # Python's own name, which a script does not see
            sys.path.insert(0, os.path.dirname(sys.argv[0]))
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            (command,) = importlib.metadata.entry_points(group="console_scripts", name=name)
            command.load()()
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        return end.code or 0
    return 0


def _end(code: int) -> None:
    """As Python ends, but for taking apart every module: that copies the server's memory, and takes
    as long as a tiny command."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.exit(code)  # Python tells of it, in its own way
    os._exit(code)


if __name__ == "__main__":
    main()
