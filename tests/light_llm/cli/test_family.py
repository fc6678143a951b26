"""The commands are one family: exit codes, completion, how options look, how fast they start."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from commands import COMMANDS, module_of
from tiny_runs import BIN, ROOT, command

TABLE = (ROOT / "docs/commands.md").read_text().partition("## Exit codes\n")[2]
DOCUMENTED = {
    int(code)
    for codes in re.findall(r"^\| ([\d, ]+) \|", TABLE.partition("\n## ")[0], re.M)
    for code in codes.split(", ")
}


def code_of(tmp_path: Path, line: str, *, setup: str = "") -> int:
    """What bash says of a command line."""
    script = f'cd {tmp_path}; export PATH={BIN}:$PATH; {setup}\n{line}\necho "code $?"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120)
    return int(done.stdout.rpartition("code ")[2])


def test_each_code_of_the_table_by_a_real_command(tmp_path):
    (tmp_path / "bug.py").write_text(
        "import sys; from light_llm.cli import runner\n"
        "app = runner.new_app()\n"
        "@app.command()\n"
        "def f(): raise KeyError('no such key')\n"
        "runner.run('llm-x', app)\n"
    )
    (tmp_path / "nan.py").write_text((tmp_path / "bug.py").read_text().replace(
        "raise KeyError('no such key')",
        "from light_llm.errors import NonFinite; raise NonFinite('inf', 1, {})",
    ))  # fmt: skip
    text = "x" * 100 + "\n"
    (tmp_path / "a.txt").write_text(text)
    wait = "import time; time.sleep(60)\ndef adapt(row): return ''\n"
    (tmp_path / "wait.py").write_text(wait)
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    slow = "llm-preprocess --input a.jsonl --output out --adapter-module wait.py"
    python = f"PYTHONPATH={ROOT} {sys.executable}"
    lines = {
        0: "llm-preprocess --input a.txt --output done --tokenizer char",
        1: f"{python} bug.py",
        2: "llm-train none.yaml",
        3: f"{python} nan.py",
        143: f"{slow} & sleep 4; kill -TERM $!; wait $!",
        141: "set -o pipefail; llm-train init | true",
    }
    found = {code: code_of(tmp_path, line) for code, line in lines.items()}
    assert found == {code: code for code in lines}
    running = subprocess.Popen(
        [BIN / "llm-preprocess", *slow.split()[1:]], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert running.stderr is not None
    next(line for line in running.stderr if "adapter_module" in line)
    running.send_signal(signal.SIGINT)
    assert running.wait(30) == 130
    assert {*lines, 130} <= DOCUMENTED
    assert DOCUMENTED - {*lines, 130} == {4, 129}  # of llm-train: tests/light_jax/training


@pytest.mark.parametrize("script", COMMANDS)
def test_bash_completes_it(script, tmp_path):
    """As bash asks: the words so far and which of them is to be completed."""
    lines = f"""
        eval "$(cd /; {BIN / script} --show-completion; true)"
        complete -p {script}
        COMP_WORDS=({script} --ver) COMP_CWORD=1
        _{script.replace("-", "_")}_completion {script}
        echo "${{COMPREPLY[@]}}"
    """
    clean = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    clean |= {k: v for k, v in os.environ.items() if k == "PYTHONPATH"}
    done = subprocess.run(
        ["bash", "--norc", "-c", lines], capture_output=True, text=True, timeout=60, env=clean
    )
    assert done.stdout.endswith("\n--version\n"), done
    assert done.stderr == ""
    assert [*tmp_path.iterdir()] == []


def test_completion_is_installed_for_the_shell_that_asks(tmp_path):
    env = {"HOME": str(tmp_path)}
    line = f"{BIN / 'llm-run'} --install-completion; true"
    done = subprocess.run(
        ["bash", "-c", line], env=os.environ | env, capture_output=True, text=True, timeout=60
    )
    assert "bash completion installed in" in done.stdout, done
    assert "llm-run" in (tmp_path / ".bash_completions/llm-run.sh").read_text()
    assert "llm-run.sh" in (tmp_path / ".bashrc").read_text()


@pytest.mark.parametrize("script", COMMANDS)
def test_help_imports_nothing_heavy(script: str):
    """So that it is answered at once."""
    env = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(
        [BIN / script, "--help"], capture_output=True, text=True, timeout=60, env=env
    )
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported
    heavy = {"jax", "torch", "transformers", "numpy", "pyarrow", "orbax", "flax", "optax", "wandb"}
    assert not heavy & imported


def parameters(script: str):
    """(its words, the parameter) of a command and its subcommands."""

    def below(name, found):
        for parameter in found.params:
            yield name, parameter
        for word, sub in getattr(found, "commands", {}).items():
            yield from below(f"{name} {word}", sub)

    return below(script, typer.main.get_command(module_of(script).app))


@pytest.mark.parametrize("script", COMMANDS)
def test_options_look_alike(script):
    """Each has its help, an option that takes a value names it, and one word means one thing."""
    values = {"--tokenizer": "PATH", "--dtype": "NAME", "--backend": "NAME", "--png": "FILE"}
    values |= {"--batch-size": "N", "--seq-len": "T", "--seed": "N", "PREFIX": "PREFIX"}
    for words, parameter in parameters(script):
        name = parameter.opts[0]
        if getattr(parameter, "hidden", False):
            continue
        where = f"{words} {name}"
        assert parameter.help, where
        if name.startswith("--"):
            if not parameter.is_flag and "completion" not in name and name != "--window-order":
                assert parameter.metavar, where
                if script != "llm-preprocess":
                    assert parameter.metavar == values.get(name, parameter.metavar), where
        else:
            assert parameter.metavar, where
        assert re.search(r"[.:\]\d]$|step0005000$", parameter.help), where


def test_a_wrong_command_line_names_the_command_whose_help_helps(tmp_path):
    done = command("llm-convert", "hf", "a", "b", "--x", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "llm-convert: No such option: --x (see llm-convert hf --help)\n"
