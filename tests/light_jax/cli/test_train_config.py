"""llm-train and its config file: what init and --print-config print, and faults of every kind."""

import contextlib
import inspect
import json
import re
import sys
import typing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from in_process import Ended, call
from tiny_runs import ROOT, TINY, command, contents, merged, write_config

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


def test_init_names_every_shipped_config():
    files = {path.name for path in (ROOT / "configs").glob("*.yaml")}
    assert set(SHIPPED.values()) == files


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
        ("c.yaml --colour blue", r"No such option: --colour .*see llm-train --help"),
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


# Faults of a file


def text_of(**changes: object) -> bytes:
    return yaml.safe_dump(merged(TINY, changes)).encode()


def plus(line: str) -> bytes:
    """A right config and a line; a key that has the line's name is left out."""
    return text_of(**{line.partition(":")[0]: ...}) + f"{line}\n".encode()


BOMB = "a: &a [x]\n" + "".join(f"b{n}: &b{n} [*a, *a]\n" for n in range(9))

FAULTS: dict[str, tuple[bytes, str]] = {
    # YAML
    "empty": (b"", "must hold key: value pairs at the top, not NoneType"),
    "comments alone": (b"# nothing\n", "must hold key: value pairs"),
    "list": (b"- train_data: x\n", "must hold key: value pairs at the top, not list"),
    "scalar": (b"train_data", "must hold key: value pairs at the top, not str"),
    "two documents": (text_of() + b"---\nseed: 1\n", "not valid YAML"),
    "tab": (b"model:\n\td_model: 3\n", "not valid YAML"),
    "not closed": (b"model: {d_model: 3\n", "not valid YAML"),
    "two colons": (plus("seed: 1: 2"), "not valid YAML"),
    "not UTF-8": (b"train_data: caf\xe9\n", "not UTF-8 text"),
    "UTF-16": ("train_data: x\n".encode("utf-16"), "not UTF-8 text"),
    "zero byte": (b"train_data: a\0b\n", "not valid YAML"),
    "python tag": (plus("wandb_run_name: !!python/object:os.system {}"), "a tag ("),
    "python call": (plus("seed: !!python/object/apply:os.system [touch owned]"), "a tag ("),
    "alias": (plus("wandb_run_name: &a x") + b"tokenizer_path: *a\n", "an alias (*a)"),
    "bomb": (text_of() + BOMB.encode(), "an alias (*a)"),
    "twice": (text_of() + b"seed: 1\nseed: 2\n", "the key 'seed' is there twice"),
    "twice in a section": (plus("optimizer: {lr: 1, lr: 2}"), "the key 'lr' is there twice"),
    "a list as key": (b"? [a]\n: 1\n", "a key must be a plain word"),
    "nested": (b"a: " + b"[" * 5000, "not valid YAML"),
    # values
    "unknown": (plus("colour: blue"), "colour is not a known key"),
    "of another trainer": (plus("block_size: 3"), "here it is seq_len"),
    "near": (plus("batch_sise: 3"), "did you mean 'batch_size'?"),
    "a number as key": (plus("3: 4"), "3 is not a known key"),
    "no": (plus("wandb_run_name: no"), "wandb_run_name=False must be a text"),
    "off as choice": (plus("window_order: off"), "window_order=False must be 'sequential' or"),
    "yes as number": (plus("seed: yes"), "seed=True must be a value, not true or false"),
    "quoted true": (plus('use_wandb: "true"'), "use_wandb='true' must be true or false"),
    "1:30": (plus("num_steps: 1:30"), "num_steps='1:30' must be a whole number"),
    "0x10": (plus("num_steps: 0x10"), "num_steps='0x10' must be a whole number"),
    "thousands": (plus("num_steps: 1,000"), "num_steps='1,000' must be a whole number"),
    "unit": (plus("num_steps: 10k"), "num_steps='10k' must be a whole number"),
    "fraction": (plus("num_steps: 1.5"), "num_steps=1.5 must be a whole number"),
    "expression": (plus("optimizer: {lr: 1/3}"), "optimizer.lr='1/3' must be a number"),
    "nan": (plus("optimizer: {lr: .nan}"), "optimizer.lr='.nan' must be a number"),
    "nan in words": (plus("optimizer: {lr: nan}"), "optimizer.lr=nan must be a finite number"),
    "inf": (plus("optimizer: {grad_clip: inf}"), "optimizer.grad_clip=inf must be a finite"),
    "inf as whole": (plus("num_steps: inf"), "num_steps=inf must be a whole number"),
    "huge": (plus("num_steps: 1e400"), "num_steps=1e400 must be a whole number"),
    "beyond 64 bits": (plus(f"num_steps: {10**30}"), "must fit into 64 bits"),
    "beyond 32 bits": (plus("num_steps: 3e9"), "num_steps=3000000000 must be less than 2147483648"),
    "negative": (plus("num_steps: -1"), "num_steps=-1 must be greater than or equal to 1"),
    "zero": (plus("batch_size: 0"), "batch_size=0 must be greater than or equal to 1"),
    "zero rate": (plus("optimizer: {lr: 0}"), "optimizer.lr=0 must be greater than 0"),
    "one as dropout": (plus("model: {dropout: 1}"), "model.dropout=1 must be less than 1"),
    "null": (plus("num_steps: null"), "num_steps=None must be a whole number"),
    "empty value": (plus("optimizer:"), "optimizer=None must be a section"),
    "list for number": (plus("num_steps: [1]"), "num_steps=['1'] must be a whole number"),
    "section for text": (plus("checkpoint_dir: {a: b}"), "checkpoint_dir={'a': 'b'} must be a"),
    "text for section": (plus("model: small"), "model='small' must be a section"),
    "list for section": (plus("model: [small]"), "model=['small'] must be a section"),
    "choice": (plus("dtype: bf16"), "dtype='bf16' must be 'bfloat16', 'float16' or 'float32'"),
    "case": (plus("dtype: Float32"), "dtype='Float32' must be 'bfloat16'"),
    "missing": (text_of(train_data=...), "train_data is required and not set"),
    "two rules": (
        text_of(seq_len=64, bf16_model_weights=True),
        "bf16_model_weights=True needs dtype='bfloat16'",
    ),
    # paths and data
    "no data": (text_of(train_data="none"), "train_data='none' does not exist"),
    "empty glob": (text_of(train_data="none/*.parquet"), "train_data='none/*.parquet' matches no"),
    "empty list": (text_of(train_data=[]), "train_data=[] must name a folder"),
    "empty path": (text_of(train_data=""), "train_data='' must name a folder"),
    "empty in a list": (text_of(train_data=["a", ""]), "must name a folder, a file or a glob"),
    "url": (text_of(train_data="s3://bucket/x"), "is a URL"),
    "a zero byte": (plus('train_data: "a\\0b"'), "train_data="),
    "no val data": (text_of(val_data="none"), "val_data='none' does not exist"),
    "text as data": (text_of(train_data="c.yaml"), "c.yaml"),
    "an empty folder": (text_of(train_data="empty"), "is a directory without *.parquet files"),
    "an empty shard": (text_of(train_data="shards/none.parquet"), "hold no window of seq_len"),
    "variable": (text_of(train_data="$UNSET_HERE/x"), "the environment variable UNSET_HERE"),
    "variable for writing": (text_of(checkpoint_dir="${UNSET_HERE}/x"), "UNSET_HERE, which is not"),
    "nobody's home": (text_of(checkpoint_dir="~nobody-of-this-name/x"), "names the home folder of"),
    "bucket": (text_of(checkpoint_dir="gs://bucket/x"), "mount the bucket"),
    "extends nothing": (text_of(extends="none.yaml"), "none.yaml: there is no such config file"),
    "extends itself": (text_of(extends="c.yaml"), "one level too many"),
}  # fmt: skip


def check_refused(ended: Ended, words: str, before: dict[str, object]) -> None:
    assert ended.exit_code == 2, ended.output
    assert ended.stderr.startswith("llm-train: ")
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    assert contents(Path.cwd()) == before


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_file_is_one_message_and_nothing_is_written(fault, monkeypatch):
    monkeypatch.delenv("UNSET_HERE", raising=False)
    text, words = FAULTS[fault]
    Path("c.yaml").write_bytes(text)
    Path("empty").mkdir()
    Path("shards").mkdir()
    pq.write_table(pa.table({"tokens": pa.array([], pa.list_(pa.int32()))}), "shards/none.parquet")
    before = contents(Path.cwd())
    check_refused(call(main, "c.yaml"), words, before)


def test_a_byte_order_mark_is_no_fault():
    for name, text in {"c.yaml": text_of(), "c.json": json.dumps(TINY).encode()}.items():
        Path(name).write_bytes(b"\xef\xbb\xbf" + text)
        assert call(main, name, "--print-config").exit_code == 0


def test_numbers_in_quotes_and_with_exponents_are_numbers():
    """YAML 1.1 reads 3e-4 as a text."""
    numbers = {"optimizer": {"lr": "3e-4", "weight_decay": "0.5"}, "save_every": "1e3"}
    Path("c.yaml").write_bytes(text_of(**numbers))
    assert b"3e-4" in text_of(**numbers)
    assert b"'0.5'" in text_of(**numbers)
    cfg = load_config("c.yaml")
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay, cfg.save_every) == (3e-4, 0.5, 1000)


@pytest.mark.parametrize("kind", ["folder", "none", "link", "ending", "no permission"])
def test_a_config_that_cannot_be_read(kind, here):
    path = here / ("c.toml" if kind == "ending" else "c.yaml")
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("nowhere.yaml")
    elif kind == "ending":
        path.write_bytes(text_of())
    elif kind == "no permission":
        path.symlink_to("/proc/self/mem")
    check_refused(call(main, path.name), path.name, contents(here))


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
