"""Which library encodes a run's texts, and what is told of it; the shards do not depend on it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizer_families import byte_level, family, llama2, plain_bytes
from tokenizers import models, normalizers, pre_tokenizers

from light_llm.preprocess import PreprocessConfig, engine, part, preprocess
from light_llm.preprocess.choice import Choice
from light_llm.preprocess.engine import FastTokenizer, Unfit
from light_llm.preprocess.proven import check_ids
from light_llm.tokenizer import SubwordTokenizer, train_char

HAN = "\U000323b0"  # of Unicode 17: disputed


def other_kind(model: Any) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


def lacking() -> tokenizers.Tokenizer:
    content = json.loads(llama2().to_str())
    del content["model"]["vocab"]["<0x0A>"]
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def with_late_token() -> tokenizers.Tokenizer:
    backend = byte_level(plain_bytes(), normalizers.NFC())
    backend.add_tokens(["<tag>"])
    return backend


DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), plain_bytes()])
QUOTES = {"type": "Replace", "pattern": {"String": "``"}, "content": '"'}
UNFIT = {
    "WordPiece": lambda: other_kind(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")),
    "Unigram": lambda: other_kind(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, False)),
    "WordLevel": lambda: other_kind(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]")),
    "pre_tokenizer was not compared": lambda: byte_level(DIGITS),
    "normalizer was not compared": lambda: byte_level(plain_bytes(), normalizers.Lowercase()),
    "normalizer was not compared: {": lambda: llama2(normalizer=QUOTES),
    "no token <0x0A>": lacking,
    "'<tag>' is looked for in the normalized text": with_late_token,
}


@pytest.mark.parametrize("reason", UNFIT)
def test_a_tokenizer_that_was_not_compared_stays_with_tokenizers(
    reason: str, capsys: pytest.CaptureFixture
):
    tokenizer = SubwordTokenizer(UNFIT[reason](), None)
    choice = Choice(tokenizer, "auto", False)
    assert choice.fastest(["a"]) is choice.fastest(["b"]) is tokenizer
    errors = capsys.readouterr().err
    assert errors.count("note: tokenizers encodes the text, since gigatoken") == 1
    assert reason in errors


def test_the_first_difference_is_named():
    with pytest.raises(Unfit, match=re.escape(r"in 'a\nb' it gives [")):
        check_ids(FastTokenizer(SubwordTokenizer(lacking(), None)), ["a", "a\nb"], False)


def test_only_versions_that_were_compared_are_taken(monkeypatch: pytest.MonkeyPatch):
    def installed(fast: str, reference: str) -> None:
        versions = {"gigatoken": fast, "tokenizers": reference}
        monkeypatch.setattr(engine, "version", versions.__getitem__)

    for fast, reference in (("0.10.0", "0.23.3"), ("0.10.7", "0.22.0")):
        installed(fast, reference)
        engine.check_version()
    for fast, reference in (("0.11.0", "0.23.3"), ("1.10.0", "0.23.3"), ("0.10.0", "0.24.0")):
        installed(fast, reference)
        with pytest.raises(Unfit, match="was not compared"):
            engine.check_version()

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(engine, "version", absent)
    with pytest.raises(Unfit, match="not installed"):
        engine.check_version()


def test_nothing_is_tried_or_told_where_there_is_no_choice(capsys: pytest.CaptureFixture):
    char, bpe = train_char("abc"), family("ours")
    assert Choice(char, "auto", False).fastest(["abc"]) is char
    assert Choice(bpe, "tokenizers", False).fastest(["abc"]) is bpe
    assert isinstance(Choice(bpe, "auto", False).fastest(["abc"]), FastTokenizer)
    assert "note" not in capsys.readouterr().err


@pytest.fixture
def many(tmp_path: Path, write_parquet: Callable) -> Path:
    """20,000 documents, enough for several processes; one in a hundred is disputed."""
    texts = [
        f"{i} it's {i * i} naïve 中文{HAN * (i % 100 == 0)}'s <|endoftext|> " for i in range(20_000)
    ]
    write_parquet(tmp_path / "many.parquet", texts)
    return tmp_path / "many.parquet"


def engines(output: Path) -> list[str]:
    return [
        name.split()[0] for name in json.loads((output / "manifest.json").read_text())["engines"]
    ]


def data(files: dict[str, bytes]) -> dict[str, Any]:
    """All files, and the manifest without the engines and the checksum over them."""
    manifest = json.loads(files["manifest.json"])
    return files | {"manifest.json": {**manifest, "engines": None, "crc32": None}}


@pytest.mark.parametrize("name", ["ours", "Llama 2"])
def test_the_shards_are_the_same_bytes_with_either_engine(
    name: str, many: Path, tmp_path: Path, files: Callable, capsys: pytest.CaptureFixture
):
    family(name).save(tmp_path / "saved")
    runs = {}
    for engine_name, workers in (("tokenizers", 2), ("auto", 2), ("auto", 1)):
        output = tmp_path / f"{engine_name}{workers}"
        config = {"input": str(many), "tokenizer_path": str(tmp_path / "saved")}
        config |= {"output": str(output), "engine": engine_name, "workers": workers}
        preprocess(PreprocessConfig.model_validate(config | {"shard_size": 200_000}))
        runs[output.name] = data(files(output))
        assert engines(output) == [{"auto": "gigatoken"}.get(engine_name, engine_name)]
    assert "since gigatoken" not in capsys.readouterr().err
    assert runs["tokenizers2"] == runs["auto2"] == runs["auto1"]


def test_a_run_that_another_engine_continues_gives_the_same_bytes(
    many: Path, saved_bpe: Path, tmp_path: Path, run: Callable, start: Callable, files: Callable
):
    flags = ("--input", many.name, "--tokenizer-path", saved_bpe, "--shard-size", 100_000)
    assert run(*flags, "--output", "whole", "--engine", "tokenizers").returncode == 0
    process: subprocess.Popen[str] = start(*flags, "--output", "out")
    deadline = time.monotonic() + 60
    journal = tmp_path / "out/.preprocess/journal.jsonl"
    while not (journal.exists() and b'"position"' in journal.read_bytes()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    last = run(*flags, "--output", "out", "--engine", "tokenizers")
    assert "continuing a run that was stopped after" in last.stderr
    assert engines(tmp_path / "out") == ["gigatoken", "tokenizers"]
    assert data(files(tmp_path / "out")) == data(files(tmp_path / "whole"))


def test_without_the_package_tokenizers_encodes_and_a_note_says_so(
    many: Path, saved_bpe: Path, tmp_path: Path, run: Callable, monkeypatch: pytest.MonkeyPatch
):
    broken = tmp_path / "broken/gigatoken"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('no such library')\n")
    path = os.pathsep.join([str(broken.parent), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    result = run("--input", many.name, "--tokenizer-path", saved_bpe, "--output", "out")
    assert result.returncode == 0, result.stderr
    assert "since gigatoken, which is faster, cannot stand for it: it cannot be" in result.stderr
    assert engines(tmp_path / "out") == ["tokenizers"]


def test_a_corpus_that_is_not_worth_the_trial_is_encoded_by_tokenizers(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def go(output: str) -> list[str]:
        config = {"input": (str(corpus),), "output": tmp_path / output, "vocab_size": 300}
        preprocess(PreprocessConfig.model_validate(config))
        return engines(tmp_path / output)

    assert go("small") == ["tokenizers"]
    monkeypatch.setattr(part, "WORTH_A_TRIAL", 1)
    assert go("large") == ["gigatoken"]
