"""llm-train and its config file: init, --print-config, hyperparameters and paths as arguments."""

import contextlib
import inspect
import re
import sys
import tomllib
import typing
from pathlib import Path

import pytest
import yaml
from in_process import call
from tiny_runs import ROOT, command, contents, write_config

from light_jax.cli import convert, data, eval, parity
from light_jax.cli.init import SHIPPED
from light_jax.cli.train import main
from light_jax.config import load_config
from light_llm.cli import run, runner


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# init


@pytest.mark.parametrize("name", SHIPPED)
def test_init_prints_a_config_that_is_right(name):
    ended = call(main, "init", name)
    assert ended.exit_code == 0
    shipped = ROOT / "configs" / SHIPPED[name]
    assert "configs/" + SHIPPED[name] not in ended.stdout
    assert re.sub("my.yaml", f"configs/{SHIPPED[name]}", ended.stdout) == shipped.read_text()
    Path("my.yaml").write_text(ended.stdout)
    assert load_config("my.yaml") == load_config(shipped)


def test_init_names_every_shipped_config_and_a_wheel_has_them():
    files = {path.name for path in (ROOT / "configs").glob("*.yaml")}
    assert set(SHIPPED.values()) == files
    assert (ROOT / "light_jax/configs").readlink() == Path("../configs")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packed = project["tool"]["setuptools"]["package-data"]["light_jax"]
    taken = {path for pattern in packed for path in (ROOT / "light_jax").glob(pattern)}
    assert {path.resolve() for path in taken} == set((ROOT / "configs").rglob("*.yaml"))


def test_init_is_a_word_and_no_file():
    assert call(main, "init").stdout == call(main, "init", "quickstart").stdout
    assert "use one of quickstart, small" in call(main, "init", "large").stderr
    assert call(main, "init", "large").exit_code == 2
    write_config(Path("init"))
    assert "./init" not in call(main, "./init").stdout
    assert "must end in .yaml" in call(main, "./init").stderr
    assert "Usage: llm-train init" in call(main, "init", "--help").stdout


def test_what_init_prints_goes_into_a_file():
    """A shell's `llm-train init complex > my.yaml`, and the file is a config."""
    done = command("llm-train", "init", "complex", cwd=Path.cwd())
    assert done.returncode == 0
    assert done.stderr.startswith("set train_data, val_data and tokenizer_path")
    Path("my.yaml").write_text(done.stdout)
    assert command("llm-train", "my.yaml", "--print-config", cwd=Path.cwd()).returncode == 0


# --print-config


def test_print_config_prints_the_same_config_complete():
    Path("c.yaml").write_text("extends: base.yaml\nnum_steps: 7\n")
    write_config(Path("base.yaml"), checkpoint_dir="~/out", wandb_run_name="007")
    code = (
        "import sys; sys.argv[1:] = ['c.yaml', '--print-config']\n"
        "from light_jax.cli.train import main\n"
        "try: main()\nfinally: assert not {'jax', 'flax', 'torch'} & set(sys.modules)"
    )
    printed = command(Path(sys.executable).name, "-c", code, cwd=Path.cwd(), env={"HOME": "/ada"})
    assert (printed.returncode, printed.stderr) == (0, "")
    text = printed.stdout
    Path("all.yaml").write_text(text)
    cfg = load_config("all.yaml")
    assert cfg.checkpoint_dir == "/ada/out"
    assert cfg == load_config("c.yaml").model_copy(update={"checkpoint_dir": "/ada/out"})
    assert yaml.safe_load(text).keys() == type(cfg).model_fields.keys()
    assert "extends" not in text


def test_print_config_stands_alone():
    write_config(Path("c.yaml"))
    for option in (["--check"], ["--resume", "auto"], ["--json"]):
        assert call(main, "c.yaml", "--print-config", *option).exit_code == 2
    write_config(Path("c.yaml"), seq_len=0)
    ended = call(main, "c.yaml", "--print-config")
    assert (ended.exit_code, ended.stdout) == (2, "")


# Hyperparameters on the command line


@pytest.mark.parametrize(
    "args, told",
    [
        ("c.yaml --num_steps 10", "--num_steps is not an option.* edit num_steps in c.yaml"),
        ("--num-steps=10 c.yaml", "--num-steps is not an option.* edit num_steps in c.yaml"),
        ("c.yaml --learning_rate=1", "edit optimizer.lr in c.yaml"),
        ("c.yaml --lr 1", "edit optimizer.lr in c.yaml"),
        ("c.yaml --optimizer.lr 1", "edit optimizer.lr in c.yaml"),
        ("c.yaml --block_size 1", "edit seq_len"),
        ("c.yaml steps=10", "steps is not an option.* edit num_steps"),
        ("--num_steps 10", r"edit num_steps in it, and name the file: llm-train CONFIG"),
        ("c.yaml --colour blue", r"No such option:? '?--colour'? .*see llm-train --help"),
        ("c.yaml --devices", "requires an argument"),
        ("c.yaml d.yaml", "unexpected extra argument"),
    ],
)
def test_a_hyperparameter_is_told_its_place_in_the_file(args, told):
    write_config(Path("c.yaml"))
    ended = call(main, *args.split())
    assert ended.exit_code == 2
    assert ended.stdout == ""
    assert re.search(told, ended.stderr)
    assert list(contents(Path.cwd())) == ["c.yaml"]


# Paths on the command line

MAINS = {convert: convert.app, data: data.app, eval: eval.app, parity: parity.app, run: run.app}
PATHS = re.compile(r"PATH|PREFIX|DIR\b|FILE|CONFIG|OUT")


def parameters(app: typing.Any) -> typing.Iterator[tuple[str, typing.Any]]:
    for info in app.registered_commands:
        for name, parameter in inspect.signature(info.callback, eval_str=True).parameters.items():
            with contextlib.suppress(AttributeError):
                yield name, parameter.annotation.__metadata__[0]
    for group in app.registered_groups:
        yield from parameters(group.typer_instance)


@pytest.mark.parametrize("module", MAINS, ids=lambda module: module.__name__)
def test_every_path_of_a_command_line_may_begin_with_a_tilde(module):
    named = {
        name: info.callback
        for name, info in parameters(MAINS[module])
        if PATHS.search(info.metavar or "") and name != "push"
    }
    assert named
    assert {name for name, callback in named.items() if callback is not runner.user_path} == set()


def test_a_tilde_that_no_shell_replaced_is_the_home_folder(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    write_config(here / "home/c.yaml", seq_len=0)
    assert f"{here}/home/c.yaml: seq_len=0" in call(main, "~/c.yaml").stderr
    ended = call(data.main, "stats", "~/none", "--no-png")
    assert f"{here}/home/none" in ended.stderr
    assert not Path("~").exists()
