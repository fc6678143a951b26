"""Faults of a config file and of the data it names: code 2, one message, nothing written."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from in_process import Ended, call
from tiny_runs import TINY, contents, merged

from light_jax.cli.train import main
from light_jax.config import load_config


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
    "project": (text_of(use_wandb=True, wandb_project="a/b"), "wandb_project='a/b' holds /"),
    "long project": (text_of(tracker="wandb", wandb_project="x" * 129), "has 129 characters"),
    # paths and data
    "no data": (text_of(train_data="none"), "train_data='none' does not exist"),
    "empty glob": (text_of(train_data="none/*.parquet"), "train_data='none/*.parquet' matches no"),
    "empty list": (text_of(train_data=[]), "train_data=[] must name a folder"),
    "empty path": (text_of(train_data=""), "train_data='' must name a folder"),
    "empty in a list": (text_of(train_data=["a", ""]), "must name a folder, a file or a glob"),
    "url": (text_of(train_data="ftp://host/x"), "train_data='ftp://host/x' must begin with gs://"),
    "a zero byte": (plus('train_data: "a\\0b"'), "train_data="),
    "no val data": (text_of(val_data="none"), "val_data='none' does not exist"),
    "text as data": (text_of(train_data="c.yaml"), "c.yaml"),
    "an empty folder": (text_of(train_data="empty"), "is a directory without *.parquet files"),
    "an empty shard": (text_of(train_data="shards/none.parquet"), "hold no window of seq_len"),
    "variable": (text_of(train_data="$UNSET_HERE/x"), "the environment variable UNSET_HERE"),
    "variable for writing": (text_of(checkpoint_dir="${UNSET_HERE}/x"), "UNSET_HERE, which is not"),
    "nobody's home": (text_of(checkpoint_dir="~nobody-of-this-name/x"), "names the home folder of"),
    "bucket": (text_of(checkpoint_dir="gs://bucket/x"), "gcloud storage rsync"),
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
