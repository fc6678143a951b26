"""The pages that a newcomer reads: each command is run in its order, or at least parsed.

What a page runs for minutes is made small between two commands: less text, a smaller model, fewer
steps. The commands stand as they are.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
import typing
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from in_process import call
from pages import ROOT, blocks, fences, name_of, prose
from tiny_runs import BIN, REFERENCE, column, merged

from light_jax.config import TrainingConfig, load_config
from light_jax.data import TokenStream
from light_jax.othernames import OTHER_NAMES
from light_jax.parallel.targets import device_of
from light_jax.reporting.flops import flops_per_token
from light_llm.configfile import Config

LANGUAGES = ("bash", "yaml", "python")
TUTORIAL, CONTINUE, FAQ, MIGRATING = (
    ROOT / f"docs/{name}.md" for name in ("tutorial", "continue", "faq", "migrating")
)
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def commands(page: Path) -> list[str]:
    return [line.strip() for text in blocks(page, "bash") for line in text.splitlines()]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str) -> str:
    """What a command prints; a console script by itself runs in this process, which is quicker."""
    words = shlex.split(line)
    if words[0] in SCRIPTS and not set(line) & set("|>$"):
        module, _, name = SCRIPTS[words[0]].partition(":")
        done = call(getattr(import_module(module), name), *words[1:])
        code, stderr = done.exit_code, done.stderr
    else:
        path = {"PATH": f"{BIN}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(["bash", "-c", line], env=path, capture_output=True, text=True)
        code, stderr = done.returncode, done.stderr
    assert not code, f"{line}\n{done.stdout}{stderr}"
    return done.stdout + stderr


def follow(lines: list[str], then: dict[str, Callable[[], None]]) -> dict[str, str]:
    """Run the commands; after one that begins with a key of `then`, what stands there."""
    said = {}
    for line in lines:
        said[line] = run(line)
        for beginning, act in then.items():
            if line.startswith(beginning):
                act()
    return said


# A folder of text to a model in transformers


def test_the_tutorial(here, capsys):
    def less_text() -> None:
        for path in Path("my-text").iterdir():
            path.unlink()
        draw = np.random.default_rng(0)
        words = [
            "def",
            "read(self,",
            "size=-1):",
            "import",
            "return",
            "self",
            "lamp",
            "stone",
            "wind",
            "keeper",
            "value",
        ]
        for number in range(100):
            text = " ".join(draw.choice(words, 120))
            Path(f"my-text/{number}.py").write_text(text)

    def a_smaller_model() -> None:
        path = Path("my-text.yaml")
        (shown,) = blocks(TUTORIAL, "yaml")
        assert shown in path.read_text()
        model = {"d_model": 48, "num_layers": 1}
        small = {"num_steps": 20, "eval_every": 10, "eval_steps": 1, "seq_len": 32, "model": model}
        path.write_text(yaml.safe_dump(merged(yaml.safe_load(path.read_text()), small)))

    said = follow(commands(TUTORIAL), {"cp ": less_text, "llm-train init": a_smaller_model})
    last = [text for line, text in said.items() if line.startswith("llm-train my-text")]
    assert ["would run   yes" in last[0], "nothing to do" in last[2]] == [True, True]
    assert Path("checkpoints/my-text/report.html").is_file()
    losses = column(Path("checkpoints/my-text"), "train/loss")
    assert losses[-1] < losses[0]
    (load,) = blocks(TUTORIAL, "python")
    capsys.readouterr()
    exec(load, {})
    assert capsys.readouterr().out.startswith("def read(self")


# Moving here


def test_a_run_of_the_pytorch_trainer_goes_on(here):
    """With the recorded one: its tag has another step than that of the page."""
    recorded = REFERENCE / "training/adamw-cosine"
    Path("configs").mkdir()
    config = yaml.safe_load((recorded / "config.yaml").read_text())
    config["checkpoint_dir"] = "checkpoints/my-run"
    for shards in ("train", "val"):  # relative to the folder that the run was started in
        Path(shards).symlink_to(recorded / shards)
    Path("configs/my-run.yaml").write_text(yaml.safe_dump(config))
    Path("checkpoints/my-run").mkdir(parents=True)
    for path in recorded.glob("step0000020.*"):
        (Path("checkpoints/my-run") / path.name).write_bytes(path.read_bytes())
    lines = [line.replace("step0005000", "step0000020") for line in commands(MIGRATING)]
    assert len(lines) == 7
    follow(lines, {})
    expected = json.loads((recorded / "expected.json").read_text())["steps"]
    assert column(Path("checkpoints/my-run"), "train/loss")[-1] == pytest.approx(
        expected[-1]["loss"], abs=2e-5
    )


def keys(config: type[Config], path: str = "") -> dict[str, typing.Any]:
    """Every key by its dotted name; sections too."""
    found: dict[str, typing.Any] = {}
    for name, field in config.model_fields.items():
        found[path + name] = field
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            found |= keys(field.annotation, f"{path}{name}.")
    return found


KEYS = keys(TrainingConfig)


def rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of the tables below a heading, without the heads of the tables."""
    text = page.read_text().partition(f"\n{heading}\n")[2].partition("\n#")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return cells[2:]


def test_the_keys_that_the_pytorch_trainer_does_not_know_are_listed():
    theirs: set[str] = set()

    def walk(section: dict[str, typing.Any], path: str) -> None:
        for key, value in section.items():
            theirs.add(path + key)
            if isinstance(value, dict):
                walk(value, f"{path}{key}.")

    for path in REFERENCE.glob("training/*/step*.config.json"):
        walk(json.loads(path.read_text()), "")
    told = [key for row in rows(MIGRATING, "### Keys that are new") for key in names(row[0])]
    assert sorted(told) == sorted(KEYS.keys() - theirs - {"mesh"})


def names(cell: str) -> list[str]:
    return re.findall(r"`([\w.]+)`", cell)


def test_the_table_of_other_trainers_names_is_the_one_that_messages_use():
    table = rows(MIGRATING, "## From nanoGPT and LitGPT")
    assert len(table) > 20
    for *theirs, ours in table:
        assert names(ours)[0] in KEYS, ours
        for name in names(" ".join(theirs)):
            assert OTHER_NAMES[name].split()[0] == names(ours)[0], name


def test_token_files_of_nanogpt_become_shards(here):
    Path("data/openwebtext").mkdir(parents=True)
    tokens = np.random.default_rng(0).integers(0, 50257, 2_500_001, dtype=np.uint16)
    for part, size in (("train", len(tokens)), ("val", 400)):
        tokens[:size].tofile(f"data/openwebtext/{part}.bin")
    (script,) = blocks(MIGRATING, "python")
    exec(script.replace("50_000_000", "2_000_000"), {})  # so that there are two shards
    read = TokenStream("data/shards/train", seq_len=1000, seed=0)
    order = [int(path.path[-12:-8]) for path in read.shards]
    parts = [tokens[2_000_000 * number :][:2_000_000] for number in order]
    np.testing.assert_array_equal(read[2100], np.concatenate(parts)[2_100_000:2_101_001])
    assert len(TokenStream("data/shards/val", seq_len=32, seed=0)) == 399 // 32


# Questions


@pytest.mark.parametrize("line", commands(FAQ))
def test_a_command_of_the_questions_is_understood(line):
    """Parsed as the command line would be, up to the files that it names."""
    words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
    command = typer.main.get_command(import_module(SCRIPTS[words[0]].partition(":")[0]).app)
    args = words[1:]
    while hasattr(command, "commands") and args and args[0] in command.commands:
        command = command.commands[args.pop(0)]
    if args != ["--version"]:
        command.make_context(words[0], args)


@pytest.mark.parametrize("page", [FAQ, MIGRATING, TUTORIAL, CONTINUE], ids=name_of)
def test_keys_and_settings_in_the_text_exist(page, tmp_path):
    text = prose(page)
    for key in re.findall(r"`((?:model|optimizer|scheduler|mesh)\.[\w.]+)`", text):
        assert key in KEYS, key
    for key, value in re.findall(r"`([a-z_]+(?:\.[a-z_]+)*): ([^`]+)`", text):
        if key == "block_size is not a known key; here it is seq_len":
            continue
        config = {key: yaml.safe_load(value)}
        for part in reversed(key.split(".")[:-1]):
            config = {part: {key.rpartition(".")[2]: yaml.safe_load(value)}}
        (tmp_path / "one.yaml").write_text(yaml.safe_dump({"train_data": "shards"} | config))
        load_config(tmp_path / "one.yaml")


def test_the_arithmetic_of_the_questions():
    """`configs/medium.yaml` takes 2.1 · 10¹⁸ FLOP; an H100 at 40 % needs 1.5 hours."""
    cfg = load_config(ROOT / "configs/medium.yaml")
    flop = flops_per_token(cfg.model, 122_300_000, cfg.seq_len)
    flop *= cfg.tokens_per_step * cfg.num_steps
    assert "2.1 · 10¹⁸ FLOP" in FAQ.read_text()
    assert "needs 1.5 hours" in FAQ.read_text().replace("\n", " ")
    assert flop == pytest.approx(2.1e18, rel=0.02)
    assert flop / (0.4 * device_of("NVIDIA H100").peak_flops) / 3600 == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize("page", [FAQ, MIGRATING, TUTORIAL, CONTINUE], ids=name_of)
def test_no_command_stands_where_it_is_not_run(page):
    """A block that is not marked bash is what a command prints, or how to install."""
    for text in (text for language, text in fences(page) if not language):
        assert "pip install" in text or not re.search(r"^llm-", text, re.MULTILINE), text
    assert {language for language, _ in fences(page)} <= {"", *LANGUAGES}
