"""Tokenizers as others publish them: the ids are those of their tokenizer.json, and of its copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from light_llm.tokenizer import SubwordTokenizer, load_tokenizer

TEXTS = [
    f"the year {year} has {year % 12 + 1} months and {year * 7919} seconds,\n\nit's {{ x+=1; }}"
    for year in range(1900, 1960)
]
END = "<|endoftext|>"
# Digits by threes, then bytes; published ones with such rules name classes that have other rules.
CUT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def trained() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CUT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    options: dict[str, Any] = {"initial_alphabet": alphabet, "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[END], **options)
    backend.train_from_iterator(TEXTS, trainer)
    return backend


RAW = trained()


def published(folder: Path, config: dict[str, Any] | None = None, **files: Any) -> Path:
    """RAW in a folder; `config` is tokenizer_config.json, and `files` are others by their stems."""
    folder.mkdir(parents=True, exist_ok=True)
    RAW.save(str(folder / "tokenizer.json"))
    for name, content in ({"tokenizer_config": config} | files).items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def subword(path: Path | str) -> SubwordTokenizer:
    tokenizer = load_tokenizer(path, fetch=False)
    assert isinstance(tokenizer, SubwordTokenizer)
    return tokenizer


def in_the_cache(cache: Path, name: str, config: dict[str, Any]) -> Path:
    """The snapshot of a published repository, as the hub's cache keeps it."""
    model = cache / f"models--{name.replace('/', '--')}"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text("0" * 40)
    folder = published(model / "snapshots" / ("0" * 40), config)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "Qwen2TokenizerFast"])
def test_by_name_the_ids_are_those_of_the_repositorys_file(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = {"tokenizer_class": kind, "eos_token": END, "bos_token": END, "unk_token": END}
    folder = in_the_cache(tmp_path, "acme/smol", config)
    by_name, by_folder = subword("acme/smol"), subword(folder)
    assert by_name.encode_batch(TEXTS) == [RAW.encode(text).ids for text in TEXTS]
    assert by_name.eos_id == by_folder.eos_id == 0
    for tokenizer, copy in ((by_name, "a"), (by_folder, "b")):
        tokenizer.save(tmp_path / copy)
    for file in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()
