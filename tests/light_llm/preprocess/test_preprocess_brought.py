"""Shards by a tokenizer that somebody else published; transformers reads its copy alike."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny_runs import command

from light_llm.errors import UserError
from light_llm.preprocess import PreprocessConfig, preprocess
from light_llm.preprocess.agreement import check_agreement
from light_llm.preprocess.corpus import FileCorpus
from light_llm.preprocess.files import find_files
from light_llm.preprocess.rows import RowText
from light_llm.tokenizer import load_tokenizer, train_bpe, train_char

TEXTS = [f"<|im_start|>user: the year {year}<|im_end|>" for year in range(1900, 1960)]
BPE = train_bpe(TEXTS, 300)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A BPE with dropout, whose chat marks are in added_tokens.json alone, and class GPT-2's."""
    folder = tmp_path / "tok"
    BPE.save(folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"]["dropout"] = 0.3
    (folder / "tokenizer.json").write_text(json.dumps(data))
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    added = {"<|im_start|>": BPE.vocab_size, "<|im_end|>": BPE.vocab_size + 1}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "docs.jsonl").write_text(lines)
    return folder


def test_the_shards_and_the_copy_beside_them_agree_and_are_the_same_each_time(published, tmp_path):
    from transformers import AutoTokenizer

    shards = []
    for output in (tmp_path / "a", tmp_path / "b"):
        options = {"tokenizer_path": str(published), "output": output, "workers": 1}
        summary = preprocess(PreprocessConfig(input=(str(tmp_path / "docs.jsonl"),), **options))
        assert summary.vocab_size == BPE.vocab_size + 2
        shards.append((output / "train/shard_00000.parquet").read_bytes())
    assert shards[0] == shards[1]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "a/tokenizer", trust_remote_code=False)
    for row in pq.read_table(tmp_path / "a/train").to_pylist():
        assert row["tokens"] == theirs.encode(row["text"], add_special_tokens=False)
        assert row["tokens"][0] == BPE.vocab_size


def corpus(folder: Path) -> FileCorpus:
    files, _ = find_files((str(folder / "docs.jsonl"),), (), (), without=())
    return FileCorpus(files, RowText(("text",), None))


def test_a_copy_that_gives_other_ids_is_refused_with_the_first_difference(published, tmp_path):
    train_bpe(TEXTS, 280).save(tmp_path / "other")
    tokenizer, text = load_tokenizer(published), TEXTS[0]
    with pytest.raises(UserError) as caught:
        check_agreement(tokenizer, tmp_path / "other", [corpus(tmp_path)], special=False)
    ours, theirs = tokenizer.encode(text), load_tokenizer(tmp_path / "other").encode(text)
    assert f"for {text!r}, from token 0 on, {ours[:8]} here and {theirs[:8]} there" in str(
        caught.value
    )


def test_a_difference_deep_in_a_text_is_shown_where_it_is(published, tmp_path):
    text = 90 * "the cat " + "zebra" + 99 * " a"
    (tmp_path / "docs.jsonl").write_text(json.dumps({"text": text}))
    other = load_tokenizer(published)
    other.backend.add_tokens(["zebra"])
    other.save(tmp_path / "other")
    with pytest.raises(UserError) as caught:
        check_agreement(
            load_tokenizer(published), tmp_path / "other", [corpus(tmp_path)], special=False
        )
    assert "for …'cat the cat the cat zebra a a" in str(caught.value)


def test_what_transformers_cannot_load_is_told(published, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    tokenizer = load_tokenizer(published)
    check_agreement(tokenizer, tmp_path / "none", [corpus(tmp_path)], special=False)
    assert "note: transformers cannot load this tokenizer: " in capsys.readouterr().err
    check_agreement(train_char(TEXTS), tmp_path / "none", [corpus(tmp_path)], special=False)
    assert capsys.readouterr().err == ""


def test_an_empty_vocabulary_and_files_that_disagree_are_one_message(published, tmp_path):
    def run() -> str:
        words = "--input docs.jsonl --output out --tokenizer-path tok --workers 1"
        done = command("llm-preprocess", *words.split(), cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert not (tmp_path / "out").exists()
        return done.stderr

    (published / "added_tokens.json").write_text('{"<|im_end|>": 7}')
    assert "added_tokens.json: gives '<|im_end|>' the id 7, and in tokenizer.json" in run()
    data = json.loads((published / "tokenizer.json").read_text())
    data |= {"added_tokens": [], "model": data["model"] | {"vocab": {}, "merges": []}}
    (published / "tokenizer.json").write_text(json.dumps(data))
    message = run()
    assert "its vocabulary is empty" in message
    assert "Traceback" not in message


def test_another_copy_leaves_no_file_of_the_tokenizer_that_was_there(published, tmp_path):
    (tmp_path / "copy").mkdir()
    for name in ("added_tokens.json", "special_tokens_map.json"):
        (tmp_path / "copy" / name).write_text('{"eos_token": "t"}')
    options = {"tokenizer_path": str(published), "output": tmp_path / "out", "workers": 1}
    options |= {"save_tokenizer": tmp_path / "copy", "overwrite": True}
    preprocess(PreprocessConfig(input=(str(tmp_path / "docs.jsonl"),), **options))
    assert load_tokenizer(tmp_path / "copy").eos_id == BPE.vocab_size + 1
