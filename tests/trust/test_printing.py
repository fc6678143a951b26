"""Messages show text from files, and a terminal never obeys it."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest
import torch
from in_process import call
from safetensors.torch import save_file
from tiny_runs import BIN, ROOT
from torch_cases import lively, tiny

from light_jax.cli import convert, data, parity, train
from light_llm.cli import preprocess, run
from light_llm.printing import LONGEST, message, printable, shown
from light_llm.tokenizer import train_char

EVIL = "\x1b]0;owned\x07\u202e"
SEEN = "\\x1b]0;owned\\x07\\u202e"
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]")


def test_control_characters_are_spelt_out():
    assert printable("a\x1b[2Jb\r\x07\x9b\u202egnp") == ("a\\x1b[2Jb\\x0d\\x07\\x9b\\u202egnp")
    assert printable("two\nlines\tand ünïcödé 漢字 🙂") == "two\nlines\tand ünïcödé 漢字 🙂"
    printable("\ud800").encode()  # half a surrogate pair can be printed too


def test_no_character_below_space_but_line_ends_and_tabs_survives():
    text = printable("".join(map(chr, range(0x110000))))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)


def test_a_message_is_never_a_flood():
    assert message("x" * LONGEST) == "x" * LONGEST
    cut = message("a" * 50_000_000 + "the end")
    assert len(cut) < 2 * LONGEST
    assert cut.endswith("the end")


def test_data_is_printed_unchanged_except_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert shown("a\x1b[31m", io.StringIO()) == "a\x1b[31m"
    assert shown("a\x1b[31m", Terminal()) == "a\\x1b[31m"


# Where `print` is called directly, and what it prints there.
PRINTING = {
    "light_llm/printing.py",
    "light_jax/reporting/console.py",  # by printable
    "light_llm/cli/runner.py",  # versions
    "light_llm/bugs.py",  # a traceback, by printable
    "light_llm/preprocess/progress.py",  # counts
    "light_llm/__init__.py",  # an example
}
NUMBERS = {
    "print()",
    "print(*tokens)",
    # of llm-runs: a row of a plot, with colours, and the colour or letter of a line of it
    "print(f\"{ticks.get(row, ''):>{margin}} │{drawn.rstrip()}\")",
    "print(_colour(line, '━━') if coloured else f' {_letter(line)}', end=' ')",
}


def test_every_command_prints_through_one_file():
    """By `say`, `tell` or, for data, `print(shown(…))`; new code must do so too."""
    found = set()
    for part in ("light_llm", "light_jax", "conversion"):
        for path in (ROOT / part).rglob("*.py"):
            calls = [
                node
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "typer.echo")
            ]
            if str(path.relative_to(ROOT)) not in PRINTING:
                found |= {ast.unparse(call) for call in calls}
    assert {call for call in found - NUMBERS if not call.startswith("print(shown(")} <= {
        "typer.echo()"
    }


# The commands


def save_checkpoint(folder: Path, characters: str, **tensors: torch.Tensor) -> Path:
    """Random weights and a tokenizer of these characters, as `best`."""
    train_char([characters]).save(folder / "tok")
    model = lively(tiny(vocab_size=len(set(characters)) + 2))
    state = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    save_file(state | tensors, folder / "best.safetensors")
    config = {"model": model.cfg.model_dump(), "tokenizer_path": str(folder / "tok")}
    (folder / "best.config.json").write_text(json.dumps(config))
    return folder / "best"


def test_names_from_files_are_escaped_in_messages(tmp_path):
    """A config's key, a column, a tensor, a tokenizer's token, a file, a checkpoint."""
    (tmp_path / f"rows{EVIL}.jsonl").write_text(json.dumps({f"col{EVIL}": "x"}))
    (tmp_path / "c.json").write_text(json.dumps({f"key{EVIL}": 1}))
    save_checkpoint(tmp_path, "ab", **{f"tensor{EVIL}": torch.zeros(2)})
    (tmp_path / "bad").mkdir()
    train_char(["ab"]).save(tmp_path / "bad")
    (tmp_path / "bad/tokenizer.json").write_text(json.dumps({"type": f"kind{EVIL}"}))
    (tmp_path / f"bad{EVIL}").mkdir()
    command = f"--input rows{EVIL}.jsonl --output o --workers 1"
    for main, arguments, named in (
        (train.main, ["c.json"], "key"),
        (preprocess.main, ["c.json"], "key"),
        (preprocess.main, command.split(" "), "col"),
        (preprocess.main, command.replace("rows", "none").split(" "), "none"),
        (run.main, ["--checkpoint", "best", "--prompt", "a"], "tensor"),
        (run.main, ["--checkpoint", f"none{EVIL}", "--prompt", "a"], "none"),
        (run.main, ["--checkpoint", "best", "--prompt", "a", "--tokenizer", f"bad{EVIL}"], "bad"),
        (data.main, ["stats", f"none{EVIL}", "--no-png"], "none"),
        (parity.main, [f"none{EVIL}"], "none"),
        (convert.main, ["state", "to-torch", f"none{EVIL}"], "none"),
        (convert.main, ["state", f"verb{EVIL}"], "verb"),
    ):
        with contextlib.chdir(tmp_path):
            done = call(main, *arguments)
        assert done.exit_code == 2, (arguments, done.stderr)
        assert not CONTROL.search(done.output), (arguments, done.output)
        assert named + SEEN in done.stderr, (arguments, done.stderr)


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that can write only these characters."""
    return save_checkpoint(tmp_path_factory.mktemp("evil"), EVIL)


def test_a_terminal_shows_what_a_model_writes(evil):
    """The echo of the prompt and the continuation, in a real process behind a terminal."""
    ours, theirs = pty.openpty()
    arguments = ["--checkpoint", evil, "--prompt", EVIL, "--max-tokens", "12", "--seed", "1"]
    process = subprocess.Popen(
        [BIN / "llm-run", *arguments], stdin=theirs, stdout=theirs, stderr=subprocess.PIPE
    )
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # how a terminal signals its end
        while piece := os.read(ours, 4096):
            seen += piece
    os.close(ours)
    error = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 0, error
    text = seen.decode()
    assert text.startswith(SEEN)
    assert len(text) > len(SEEN) + 12
    assert not CONTROL.search(text)


def test_a_file_or_a_pipe_gets_a_models_text_unchanged(evil):
    """Each line that is typed too, colours included."""
    for arguments in (["--prompt", EVIL], ["--interactive"]):
        done = call(
            run.main, "--checkpoint", evil, *arguments, "--max-tokens", 12, input=EVIL + "\n"
        )
        assert done.exit_code == 0, done.stderr
        assert done.stdout.startswith(EVIL)
        assert "\\x" not in done.stdout
