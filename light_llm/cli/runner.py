"""How every command starts and ends: its signals, its message on stderr, its exit code.

0 done, 1 a bug, 2 what was asked cannot be done, 3 training is not finite, 4 another process of
the run is gone (light_jax.parallel.watch), 128 + n ended by signal n; docs/commands.md has them for
users.
Imports nothing heavy, so that `--help` and a mistyped flag are answered at once.
"""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from importlib import metadata
from types import FrameType
from typing import Any, NoReturn, TextIO

import typer

from light_llm import __version__, bugs, exits
from light_llm.errors import NonFinite, UserError, is_out_of_memory, one_line
from light_llm.files.userpath import with_home
from light_llm.printing import tell

# The base class of typer's errors for a wrong command line; typer exports only BadParameter.
UsageError: Any = typer.BadParameter.__bases__[0]

Misplaced = Callable[[str | None, list[str]], str | None]

DEVICES = "import jax; all = jax.devices(); print(len(all), all[0].device_kind)"
DEVICES_TIMEOUT = 20  # seconds: an accelerator that others hold may never answer
AGAIN = 0.25  # seconds

_stopped_by: int | None = None
"""The signal that `unwind` raised `Stopped` for."""


class Stopped(BaseException):
    """Stopped by a signal. Not SystemExit, which the user's own code (an adapter) may raise too."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def new_app(*, completion: bool = True) -> typer.Typer:
    """An app with the common look: plain help, and for a command of its own, shell completion."""
    return typer.Typer(
        add_completion=completion, pretty_exceptions_enable=False, rich_markup_mode=None
    )


def version_option(*, devices: bool = False) -> Any:
    """`--version`; with the devices that JAX sees, for a command that needs it anyway."""

    def show(context: typer.Context, wanted: bool) -> None:
        if wanted:
            print(f"{context.find_root().info_name} of light-llm-jax {__version__}")
            print(f"python {platform.python_version()}")
            for package in ("jax", "torch"):
                print(f"{package} {_installed(package)}")
            if devices:
                sys.stdout.flush()  # the devices can take seconds
                print(f"devices {_devices()}")
            raise typer.Exit

    return typer.Option(
        "--version", callback=show, is_eager=True, help="Show the versions in use and exit."
    )


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "is not installed"


def _devices() -> str:
    """How many devices and which. A separate process asks JAX, since it can be abandoned."""
    command = [sys.executable, "-P", "-c", DEVICES]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEVICES_TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"do not answer within {DEVICES_TIMEOUT} s"
    lines = (done.stderr if done.returncode else done.stdout).splitlines()
    return lines[-1] if lines else "unknown"


def run(
    name: str,
    app: typer.Typer,
    *,
    ended_by: Iterable[signal.Signals] = (),
    unwound_by: Iterable[signal.Signals] = (),
    misplaced: Misplaced | None = None,
) -> NoReturn:
    """Run the command of `app` on sys.argv, and exit.

    Args:
        name: its words beyond the first are subcommands that `app` does not know of.
        ended_by: signals that end the process at once, by the default action. For a command with
            nothing to clean up, or not yet.
        unwound_by: signals that raise `Stopped`, so that `finally` and `with` clean up.
        misplaced: says what to do instead of a wrong command line, given the option that is not
            known, if that is the fault, and the arguments.
    """
    _use_utf8()
    global _stopped_by
    _stopped_by = None  # tests run several commands in one process
    for number in ended_by:
        signal.signal(number, signal.SIG_DFL)
    for number in unwound_by:
        signal.signal(number, unwind)
    warnings.showwarning = _show_warning
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # any file name
    try:
        code = _exit_code(name, app, misplaced)
    except Stopped:  # raised again while the command ended in another way
        code = 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in unwound_by:
        signal.signal(number, signal.SIG_DFL)
    if _stopped_by is not None:
        code = code and 128 + _stopped_by
    _flush_or_drop(sys.stderr)
    exits.over(code)
    gc.freeze()  # or the interpreter looks for cycles among a million objects, half a second long
    sys.exit(code)


def _use_utf8() -> None:
    """Begin again in UTF-8 where the locale names another encoding for paths and files: a name that
    it cannot express would be an error in the midst of a library."""
    if sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"  # for the processes that a command starts
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def user_path(value: Any) -> Any:
    """Callback of an argument or option that takes a path, or several: a shell leaves the `~` of
    `--data=~/x` as it is.

    Raises:
        UserError: nobody has this home folder.
    """
    if isinstance(value, list | tuple):
        return [user_path(each) for each in value]
    try:
        return value if value is None else type(value)(with_home(str(value)))
    except ValueError as error:
        raise UserError(f"{value}: the path {error}") from None


def _exit_code(name: str, app: typer.Typer, misplaced: Misplaced | None) -> int:
    try:
        code = _invoke(name, app)
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk is reported here, not when the interpreter ends
        return code
    except UsageError as error:
        unknown = type(error).__name__ == "NoSuchOption"
        option = error.option_name if unknown else None
        instead = misplaced and misplaced(option, _arguments(name))
        if instead:
            return _report(name, instead, 2)
        problem = " ".join(error.format_message().split()).rstrip(".")
        command = name if error.ctx is None else error.ctx.command_path
        return _report(name, f"{problem} (see {command} --help)", 2)
    except UserError as error:
        return _report(name, error, 2)
    except NonFinite as error:
        return _report(name, error, 3)
    except Stopped as stop:
        signal.setitimer(signal.ITIMER_REAL, 0)
        return 128 + stop.number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of the output, such as `| head`, has ended
        _flush_or_drop(sys.stdout)
        return 128 + signal.SIGPIPE
    except MemoryError:
        return _report(name, "the memory of this machine is not enough for this; ask for less", 2)
    except OSError as error:  # a name too long for the file system, a full disk behind `>`
        where = "" if error.filename is None else f"{str(error.filename)[:80]}: "
        return _report(name, f"{where}{error.strerror or error}", 2)
    except Exception as error:
        if is_out_of_memory(error):
            reason = one_line(error, 200)
            return _report(
                name, f"out of memory ({reason}); ask for less: a smaller model or batch", 2
            )
        _flush_or_drop(sys.stdout)
        bugs.report(name, error)
        return 1


def _invoke(name: str, app: typer.Typer) -> int:
    """What typer's own `main` does, without its exits."""
    command = typer.main.get_command(app)
    command._main_shell_completion({}, name)  # type: ignore[attr-defined]  # exits where a shell asks
    try:
        with command.make_context(name, _arguments(name)) as context:
            return command.invoke(context) or 0
    except typer.Exit as end:  # of --help and --version
        return end.exit_code


def _arguments(name: str) -> list[str]:
    return sys.argv[len(name.split()) :]


def _report(name: str, message: object, code: int) -> int:
    _flush_or_drop(sys.stdout)
    if _stopped_by is not None:  # a library made an error of its own of it
        return code
    with contextlib.suppress(OSError):  # nobody reads it
        tell(f"{name}: {message}")
    return code


def _flush_or_drop(file: TextIO | None) -> None:
    """Write what was printed, or drop it if that fails: otherwise Python tries again as it ends,
    and ends with 120."""
    if file is None or file.closed:
        return
    try:
        file.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def unwind(number: int, frame: FrameType | None) -> NoReturn:
    """A signal's handler: raise `Stopped`, and again for as long as it is lost. Callbacks swallow
    what is raised in them, and imports of some libraries do.
    """
    global _stopped_by
    _stopped_by = number
    # what ends in the midst, a callback or a thread, would print a traceback of its own
    sys.unraisablehook = threading.excepthook = _say_nothing
    signal.signal(signal.SIGALRM, _unwind_again)
    signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)
    raise Stopped(number)


def _say_nothing(_: object) -> None: ...


def _unwind_again(alarm: int, frame: FrameType | None) -> None:
    handled = sys.exception()
    while handled is not None:
        if isinstance(handled, Stopped):
            return  # `finally` and `with` are cleaning up
        handled = handled.__context__
    assert _stopped_by is not None
    raise Stopped(_stopped_by)


def _show_warning(message, category, filename, lineno, file=None, line=None):  # type: ignore[no-untyped-def]
    tell(f"warning: {message}")
