"""The six commands are one family: how each starts and ends, and what the packages offer."""

from __future__ import annotations

import importlib
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import COMMANDS, main_of
from in_process import call

import light_llm

BIN = Path(sys.executable).parent

# A command whose body is `body`; the process prints on stdout when it has begun.
SCRIPT = """
import signal, sys, time
from light_llm.cli import runner
from light_llm.errors import NonFinite, UserError

app = runner.new_app()

@app.command()
def command():
    {body}

runner.run("llm-x", app, {policy})
"""


def start(body: str, policy: str = "", **streams) -> subprocess.Popen[str]:
    code = SCRIPT.format(body=body, policy=policy)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | streams
    return subprocess.Popen([sys.executable, "-c", code], **streams)


def ended(body: str, policy: str = "", **streams) -> tuple[int, str, str]:
    process = start(body, policy, **streams)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


ENDINGS = {
    "done": ("print('text')", 0, "text\n", ""),
    "a code": ("return 1", 1, "", ""),
    "the user's": ("raise UserError('x=1 must be 2')", 2, "", "llm-x: x=1 must be 2\n"),
    "not finite": ("raise NonFinite('step 2: inf', 1, {})", 3, "", "llm-x: step 2: inf\n"),
    "a file": ("open('no/x')", 2, "", "llm-x: no/x: No such file or directory\n"),
    "a warning": ("import warnings; warnings.warn('old')", 0, "", "warning: old\n"),
}


@pytest.mark.parametrize("case", ENDINGS)
def test_each_way_to_end_has_its_code_and_its_message(case):
    body, *expected = ENDINGS[case]
    assert [
        *ended(
            body,
        )
    ] == expected


def test_a_bug_keeps_its_traceback_and_says_where_to_report_it():
    code, _, err = ended("1 / 0")
    assert code == 1
    trace, message = err.split("llm-x: ")
    assert trace.startswith("Traceback")
    assert trace.endswith("ZeroDivisionError: division by zero\n")
    assert message.startswith("this is a bug: ZeroDivisionError: division by zero\nPlease report ")
    assert "`llm-x --version`" in message
    assert ended("raise MemoryError")[0] == 2


def test_running_out_of_memory_is_no_bug():
    reason = "RESOURCE_EXHAUSTED: Out of memory allocating 12884901888 bytes."
    code, _, err = ended(f"raise RuntimeError({reason!r})")
    assert code == 2
    assert err.startswith(f"llm-x: out of memory ({reason}); ask for less: ")
    assert len(err.splitlines()) == 1


def test_a_bug_shows_no_control_characters_of_a_file():
    _, _, err = ended("raise KeyError(chr(27) + '[31m')\n")
    assert chr(27) not in err


def test_an_output_that_cannot_be_written():
    with open("/dev/full", "w") as full:
        assert ended("print('x')", stdout=full) == (
            2, None, "llm-x: No space left on device\n"
        )  # fmt: skip
    for policy, code in {"": 141, "ended_by=[signal.SIGPIPE]": -signal.SIGPIPE}.items():
        process = start("time.sleep(0.5); print('x')", policy)
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) == code
        assert process.stderr.read() == ""


INT, TERM = signal.SIGINT, signal.SIGTERM
POLICIES = {
    "Python's own": ("", INT, 130, "tidied\n"),
    "ended": ("ended_by=[signal.SIGINT]", INT, -INT, ""),
    "unwound": ("unwound_by=[signal.SIGTERM]", TERM, 143, "tidied\n"),
}


@pytest.mark.parametrize("case", POLICIES)
def test_a_signal(case):
    policy, number, code, out = POLICIES[case]
    body = """
    try:
        print("begun", flush=True)
        time.sleep(60)
    finally:
        print("tidied")
"""
    process = start(body, policy)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    assert process.communicate(timeout=60) == (out, "")
    assert process.returncode == code


def unwound(body: str) -> tuple[int, tuple[str, str]]:
    """How a command ends that SIGTERM unwinds once it has printed that it begun."""
    process = start(body, "unwound_by=[signal.SIGTERM]")
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(TERM)
    said = process.communicate(timeout=60)
    return process.returncode, said


def test_a_signal_that_a_callback_swallows_ends_the_command_all_the_same():
    body = """
    class Reference:
        def __del__(self):
            print("begun", flush=True)
            time.sleep(5)
    try:
        Reference()
        for _ in range(600):
            time.sleep(0.1)
    finally:
        time.sleep(3 * runner.AGAIN)  # which the repetition leaves alone
        print("tidied")
"""
    assert unwound(body) == (143, ("tidied\n", ""))


def test_a_signal_of_which_a_library_makes_an_error_is_a_signal():
    body = """
    try:
        print("begun", flush=True)
        time.sleep(60)
    except BaseException:
        raise UserError("the import failed") from None
"""
    assert unwound(body) == (143, ("", ""))


@pytest.mark.parametrize("script", COMMANDS)
def test_a_wrong_command_line_is_one_line(script):
    done = call(main_of(script), "--no-such-flag")
    assert (done.exit_code, done.stdout) == (2, "")
    message = rf"{script}: No such option: --no-such-flag.* \(see {script} --help\)\n"
    assert re.fullmatch(message, done.stderr)


@pytest.mark.parametrize("script", COMMANDS)
def test_version(script):
    done = call(main_of(script), "--version")
    assert done.exit_code == 0, done.stderr
    check_version(script, done.stdout)


def test_version_of_a_process():
    done = subprocess.run(
        [BIN / "llm-train", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    check_version("llm-train", done.stdout)


def check_version(script, printed):
    own, *others = printed.splitlines()
    assert own == f"{script} of light-llm-jax {light_llm.__version__}"
    needs_jax = script in ("llm-train", "llm-parity", "llm-eval")
    names = ["python", "jax", "torch", "devices"][: 4 if needs_jax else 3]
    assert [line.split()[0] for line in others] == names
    assert "not installed" not in others[1]
    if needs_jax:
        assert re.fullmatch(r"devices \d+ cpu", others[3])


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "light_jax", "none.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("llm-train: none.yaml: there is no such config file")


@pytest.mark.parametrize("package", ["light_llm", "light_jax", "conversion"])
def test_what_a_package_offers_is_there_and_explained(package):
    module = importlib.import_module(package)
    assert module.__version__ == light_llm.__version__
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018
    assert (Path(module.__file__).parent / "py.typed").exists()
