"""The console script: flags, exit codes, and never a half-written output."""

from __future__ import annotations

import inspect
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import yaml

from light_llm.cli.preprocess import llm_preprocess, main
from light_llm.configcheck import validate
from light_llm.configsource import read_mapping
from light_llm.preprocess import PreprocessConfig, part
from light_llm.preprocess.config import (
    DEFAULT_MIN_FREQUENCY,
    DEFAULT_TRAIN_CHARACTERS,
    DEFAULT_VOCAB_SIZE,
)
from light_llm.preprocess.rows import fields_of

ROOT = Path(__file__).parents[3]


def test_a_run_from_text_to_shards(corpus: Path, tmp_path: Path, run: Callable, rows: Callable):
    result = run("--input", corpus, "--output", "data/out", "--vocab-size", 300)
    assert result.returncode == 0, result.stderr
    documents = rows(tmp_path / "data/out")
    tokens = sum(row["length"] for row in documents)
    assert f"together: 5 documents, {tokens:,} tokens" in result.stdout
    assert "tokenizer: data/out/tokenizer, vocab_size 300" in result.stdout
    assert "unigram entropy of the held-out text: " in result.stdout
    assert result.stdout.strip().endswith("nats/token")
    assert f"tokenizing: 5 documents, {tokens:,} tokens" in result.stderr
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["out"]


def test_a_config_file_holds_the_flags_and_flags_override_it(
    corpus: Path, tmp_path: Path, run: Callable, rows: Callable
):
    """YAML and JSON alike; a list may be a single value, and a number may be 3e2."""
    keys = {"input": "corpus", "output": "out", "vocab_size": "3e2", "val_fraction": 0.4}
    keys |= {"exclude": ["4.txt"], "overwrite": True}
    (tmp_path / "c.json").write_text(json.dumps(keys))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(keys))
    for name in ("c.json", "c.yaml"):
        result = run(name, "--val-fraction", 0, "--exclude", "3.txt", "--min-frequency", 1)
        assert result.returncode == 0, result.stderr
        sources = [Path(row["source"]).name for row in rows(tmp_path / "out")]
        assert sources == ["0.txt", "1.txt", "2.txt", "4.txt"]
        assert not (tmp_path / "out/val").exists()
        options = json.loads((tmp_path / "out/manifest.json").read_text())["options"]
        assert (options["vocab_size"], options["min_frequency"]) == (300, 1)
    (tmp_path / "c.yaml").write_text("input: corpus\noutput: out\nshard_sise: 3\n")
    result = run("c.yaml", "--overwrite")
    assert_refused(result, "c.yaml and flags: shard_sise", "did you mean 'shard_size'?")


@pytest.mark.parametrize("name", ["wikipedia", "wikipedia_languages", "fineweb"])
def test_the_shipped_configs_are_ones(name: str):
    path = ROOT / f"configs/preprocess/{name}.yaml"
    config = validate(PreprocessConfig, read_mapping(path), path)
    assert fields_of(config.hf_dataset, config.text_column) == ("text",)
    assert str(config.output) in path.read_text()
    known = {f"--{flag.replace('_', '-')}" for flag in inspect.signature(llm_preprocess).parameters}
    assert set(re.findall(r"(?<![\w-])--[a-z-]+", path.read_text())) <= known


def defaults() -> dict[str, object]:
    fields = PreprocessConfig.model_fields
    trained = {
        "vocab_size": DEFAULT_VOCAB_SIZE,
        "min_frequency": DEFAULT_MIN_FREQUENCY,
        "train_characters": DEFAULT_TRAIN_CHARACTERS,
        "hf_split": "train",
    }
    return {name: field.default for name, field in fields.items()} | trained


WITH_A_DEFAULT = [
    "hf_split",
    "min_length",
    "vocab_size",
    "min_frequency",
    "train_characters",
    "val_fraction",
    "shard_size",
]


def test_help_is_plain_and_quotes_the_defaults(run: Callable):
    result = run("--help")
    assert result.returncode == 0
    text = " ".join(result.stdout.split())
    for name in defaults():
        assert f"--{name.replace('_', '-')} " in text
    for name in WITH_A_DEFAULT:
        after = text.split(f" --{name.replace('_', '-')} ")[1].split(" --")[0]
        assert after.endswith(f"[default: {defaults()[name]}]")


def test_the_docs_list_the_flags_and_their_defaults():
    text = (ROOT / "docs/preprocess.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `--([a-z-]+)[^`]*` \| `?([^`|]+?)`? \|", text, re.MULTILINE)
    listed = {flag.replace("-", "_"): default for flag, default in rows}
    assert ["config", *listed] == list(inspect.signature(llm_preprocess).parameters)
    for name in WITH_A_DEFAULT:
        assert listed[name] == str(defaults()[name])


def test_importing_and_asking_for_help_is_cheap():
    code = (
        "import sys, light_llm.tokenizer, light_llm.cli.preprocess\n"
        "import light_llm.preprocess.pipeline\n"
        "heavy = {'torch', 'jax', 'transformers', 'tokenizers', 'pyarrow', 'numpy'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def assert_refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr


BAD_FLAGS = {
    "missing input": (["--input", "none"], "--input none: there is no such file or folder"),
    "unknown flag": (["--inptu", "x"], "No such option: --inptu"),
    "not a number": (
        ["--input", "corpus", "--vocab-size", "many"],
        "Invalid value for '--vocab-size'",
    ),
    "hub offline": (
        ["--input", "corpus", "--tokenizer-path", "nobody/nothing"],
        "nobody/nothing: there is no such file or folder here",
    ),
}


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_the_command_refuses_with_one_message(
    case: str, corpus: Path, tmp_path: Path, run: Callable, files: Callable
):
    before = files(tmp_path)
    flags, message = BAD_FLAGS[case]
    result = run(*flags, "--output", "out")
    assert_refused(result, message)
    assert files(tmp_path) == before


BAD_OPTIONS: dict[str, tuple[dict[str, object], str]] = {
    "vocab_size": ({"vocab_size": 256}, "vocab_size=256 must be 257 or more"),
    "fraction one": ({"val_fraction": 1}, "val_fraction=1.0 must be at least 0 and below 1"),
    "fraction below": ({"val_fraction": -0.1}, "val_fraction=-0.1 must be"),
    "shard_size": ({"shard_size": 0}, "shard_size=0 must be 1 or more"),
    "workers": ({"workers": 0}, "workers=0 must be 1 or more"),
    "min_length": ({"min_length": -1}, "min_length=-1 must be 0 or more"),
    "kind": ({"tokenizer": "word"}, "tokenizer='word' must be 'bpe', 'char' or 'hf'"),
    "hf": ({"tokenizer": "hf"}, "needs tokenizer_path"),
    "char size": ({"tokenizer": "char", "vocab_size": 300}, "has no meaning for a char tokenizer"),
    "both": ({"vocab_size": 300, "tokenizer_path": "x"}, "with tokenizer_path none is trained"),
    "no tokenizer": ({"tokenizer_path": "corpus"}, "corpus: is not a tokenizer folder"),
    "other kind": ({"tokenizer": "char", "tokenizer_path": "bpe"}, "is a subword tokenizer, not"),
    "column": ({"text_column": "body", "input": "a.jsonl"}, "choose with --text-column from: text"),
    "none left": ({"min_length": 10**6}, "no documents in corpus: of 5 files 0 are not text"),
    "no output": ({"output": ""}, "output='' must name a folder"),
    "no source": ({"input": None}, "input or hf_dataset is required"),
    "two sources": ({"hf_dataset": "x"}, "leave out one of the two"),
    "files only": ({"input": None, "hf_dataset": "x", "include": "y"}, "no meaning without input"),
    "hub only": ({"hf_config": "x"}, "hf_config='x' has no meaning without hf_dataset"),
    "subfolder": ({"input": None, "hf_dataset": "x", "hf_configs": "a/b"}, "'a/b' cannot be"),
    "hub": ({"input": None, "hf_dataset": "no/where"}, "there is no such folder here"),
    "adapter": ({"adapter_module": "no_such"}, "adapter_module='no_such': cannot be imported"),
    "output file": ({"output": "corpus/0.txt"}, "--output corpus/0.txt: is a file"),
    "below a file": ({"output": "corpus/0.txt/out"}, "nothing can be written in"),
    "foreign": ({"output": "foreign", "overwrite": True}, "train/notes.txt is not a shard"),
    "no input": ({"input": ""}, "must not be empty"),
    "no split": ({"input": None, "hf_dataset": "corpus", "hf_split": ""}, "must not be empty"),
    "revision": (
        {"input": None, "hf_dataset": "corpus", "hf_revision": "x"},
        "no meaning for hf_dataset='corpus', which is a folder here",
    ),
    "text alone": ({"text_column": "x"}, "text_column='x' has no meaning for files of text"),
    "template": ({"add_special_tokens": True}, "has no meaning without tokenizer_path"),
    "copy inside": ({"save_tokenizer": "out/train/t"}, "is in out/train, which the run itself"),
    "exit": ({"adapter_module": "exit.py", "input": "a.jsonl"}, "a.jsonl:1: the adapter raised"),
    "no unk": ({"tokenizer_path": "words", "workers": 1}, "corpus/0.txt: the tokenizer fails on"),
    "no unk, elsewhere": (
        {"tokenizer_path": "words", "workers": 2},
        "corpus/0.txt: the tokenizer fails on",
    ),
    "binary": ({"input": "a.bin"}, "a.bin: is not UTF-8 text"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_are_refused_and_nothing_is_written(
    case: str,
    corpus: Path,
    saved_bpe: Path,
    tmp_path: Path,
    files: Callable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "x"}')
    (tmp_path / "a.bin").write_bytes(b"\xff")
    (tmp_path / "exit.py").write_text("import sys\n\n\ndef adapt(row):\n    sys.exit(0)\n")
    (tmp_path / "words").mkdir()
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"x": 0}, unk_token="?"))
    words.save(str(tmp_path / "words/tokenizer.json"))
    monkeypatch.setattr(part, "SMALL_CHUNKS", 1)  # several processes, if --workers says so
    (tmp_path / "bpe").symlink_to(saved_bpe)
    (tmp_path / "foreign/train").mkdir(parents=True)
    (tmp_path / "foreign/train/notes.txt").write_text("mine")
    before = files(tmp_path)
    options, message = BAD_OPTIONS[case]
    flags = ["llm-preprocess"]
    for name, value in {"input": "corpus", "output": "out", **options}.items():
        flag = f"--{name.replace('_', '-')}"
        flags += [flag] if value is True else [] if value is None else [flag, str(value)]
    monkeypatch.setattr(sys, "argv", flags)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        main()
    signal.signal(signal.SIGTERM, handler)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "llm-preprocess: " in error
    assert "Traceback" not in error
    assert files(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_shards_are_replaced_only_with_overwrite(
    corpus: Path, tmp_path: Path, run: Callable, files: Callable
):
    flags = ("--output", "out", "--tokenizer", "char")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/README.md").write_text("mine")
    assert run("--input", corpus, *flags).returncode == 0
    before = files(tmp_path / "out")
    assert "README.md" in before
    second = corpus / "1.txt"
    assert_refused(
        run("--input", second, *flags),
        "holds tokenizer, manifest.json, val, train already",
        "--overw",
    )
    assert files(tmp_path / "out") == before
    bad = run("--input", second, *flags, "--overwrite", "--min-length", 10**6)
    assert_refused(bad, "no documents")
    assert files(tmp_path / "out") == before
    assert run("--input", second, *flags, "--overwrite").returncode == 0
    after = files(tmp_path / "out")
    assert sorted(after) == [
        "README.md",
        "manifest.json",
        "tokenizer/char_tokenizer.json",
        "train/shard_00000.parquet",
    ]
    assert after["train/shard_00000.parquet"] != before["train/shard_00000.parquet"]


def test_an_output_inside_its_input_does_not_feed_on_itself(
    corpus: Path, tmp_path: Path, run: Callable, files: Callable
):
    flags = ("--input", corpus, "--output", corpus, "--tokenizer", "char", "--overwrite")
    assert run(*flags).returncode == 0
    first = files(tmp_path)
    assert run(*flags).returncode == 0
    assert files(tmp_path) == first


def test_a_tilde_and_variables_in_paths(
    run: Callable, tmp_path: Path, tmp_path_factory, monkeypatch
):
    """In the file and in the flags; the manifest shows neither the home nor a folder called ~."""
    home = tmp_path_factory.mktemp("home")
    (home / "in").mkdir()
    (home / "in/a.txt").write_text("the cat sat on the mat. " * 40)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("OUT", str(home / "out"))
    (tmp_path / "c.yaml").write_text('input: ["~/in"]\noutput: $OUT\n')
    result = run("c.yaml", "--tokenizer", "char", "--val-fraction", "0", "--save-tokenizer", "~/t")
    assert result.returncode == 0, result.stderr
    manifest = json.loads((home / "out/manifest.json").read_text())
    assert manifest["options"]["input"] == ["~/in"]
    assert (home / "t").is_dir()
    assert not (tmp_path / "~").exists()
    monkeypatch.delenv("OUT")
    assert_refused(run("c.yaml"), "output='$OUT' needs the environment variable OUT")
