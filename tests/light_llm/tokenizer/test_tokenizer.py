"""Tokenizers: every text survives, saving loses nothing, ids come out as transformers' do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from light_llm.errors import UserError
from light_llm.tokenizer import (
    CharTokenizer,
    PythonTokenizer,
    StreamDecoder,
    SubwordTokenizer,
    Tokenizer,
    load_tokenizer,
    train_bpe,
    train_char,
)

TEXTS = ["the cat sat on the mat", "Grüße, 世界! 👩‍👩‍👧", "<|endoftext|>", " \r\n\t\0 ", ""]
BPE = train_bpe(TEXTS * 3, vocab_size=300)


@given(st.text())
def test_bpe_gives_back_every_text(text: str):
    assert BPE.decode(BPE.encode(text)) == text


@pytest.mark.parametrize("text", ["x" * 300_000, "word 世界\n" * 50_000, "👩‍👩‍👧" * 20_000, ""])
def test_bpe_gives_back_huge_and_empty_texts(text: str):
    assert BPE.decode(BPE.encode(text)) == text


@given(st.text())
def test_char_gives_back_every_text_it_was_trained_on(text: str):
    tokenizer = train_char([text])
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) == len(text)


def test_char_ids_are_unknown_then_end_then_code_points_in_order():
    tokenizer = train_char(["cab", "ba"])
    assert tokenizer.vocab_size == 5
    assert tokenizer.encode("abcz") == [2, 3, 4, 0]
    assert tokenizer.decode([2, 0, 1, 99, -1]) == "a\N{REPLACEMENT CHARACTER}"
    assert tokenizer.decode([2, 1], skip_special_tokens=False) == "a<|endoftext|>"


def test_bpe_ids_are_end_then_bytes_then_merges():
    assert BPE.eos_id == 0
    assert BPE.bos_id is None
    assert 257 < BPE.vocab_size <= 300
    assert train_bpe([], vocab_size=257).vocab_size == 257
    every_byte = "".join(map(chr, range(128))) + "世界é👩"
    assert set(train_bpe([], vocab_size=257).encode(every_byte)) <= set(range(1, 257))


def test_min_frequency_bounds_the_merges():
    assert train_bpe(["ab ab cd"], 1000, min_frequency=2).vocab_size == 258  # only ab comes twice
    assert train_bpe(["ab ab cd"], 1000, min_frequency=3).vocab_size == 257


def test_training_reads_an_iterator_once_and_is_deterministic():
    again = train_bpe(iter(TEXTS * 3), vocab_size=300)
    assert again.backend.to_str() == BPE.backend.to_str()


def test_a_text_that_spells_out_the_end_does_not_end():
    assert BPE.eos_id not in BPE.encode("a<|endoftext|>b")
    tokenizer = train_char(["<|endoftext|>"])
    assert tokenizer.eos_id not in tokenizer.encode("<|endoftext|>")


@pytest.mark.parametrize("tokenizer", [BPE, train_char(TEXTS)], ids=["bpe", "char"])
def test_a_batch_is_its_texts_one_by_one(tokenizer: Tokenizer):
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


@pytest.mark.parametrize("tokenizer", [BPE, train_char(TEXTS)], ids=["bpe", "char"])
def test_saved_and_loaded_it_is_the_same(tokenizer: Tokenizer, tmp_path: Path):
    tokenizer.save(tmp_path / "a")
    first = load_tokenizer(tmp_path / "a")
    file = next(file for file in (tmp_path / "a").iterdir() if "config" not in file.name)
    for loaded in (first, load_tokenizer(str(file))):
        assert type(loaded) is type(tokenizer)
        for name in ("vocab_size", "eos_id", "bos_id"):
            assert getattr(loaded, name) == getattr(tokenizer, name)
        assert loaded.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
    first.save(tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()


def test_transformers_reads_what_is_saved_and_agrees(tmp_path: Path):
    from transformers import AutoTokenizer

    BPE.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    assert theirs.eos_token_id == BPE.eos_id
    assert len(theirs) == BPE.vocab_size
    for text in [*TEXTS, "spaces , kept . here"]:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ids == BPE.encode(text)
        assert theirs.decode(ids, skip_special_tokens=True) == text


def foreign_folder(folder: Path) -> Path:
    """Like a published one: BOS and EOS by template, truncation at 4 tokens, a gap in the ids."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "cat": 3, "sat": 4, "mat": 9}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([AddedToken(token) for token in ("<unk>", "<s>", "</s>")])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    return folder


def test_a_foreign_folder_is_loaded_unchanged(tmp_path: Path):
    folder = foreign_folder(tmp_path)
    config = {"eos_token": {"content": "</s>"}, "bos_token": "<s>", "chat_template": "{{ x }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, 10)
    assert tokenizer.encode("cat sat mat " * 2) == [3, 4, 9] * 2  # neither cut nor padded
    assert tokenizer.encode("cat", add_special_tokens=True) == [1, 3, 2]
    assert tokenizer.encode_batch(["cat"], add_special_tokens=True) == [[1, 3, 2]]
    assert tokenizer.encode("cat </s>") == [3, 2]  # as transformers reads it
    assert tokenizer.decode([1, 3, 2, 7, 500]) == "cat"
    tokenizer.save(tmp_path / "copy")
    plain = config | {"eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    assert json.loads((tmp_path / "copy/tokenizer_config.json").read_text()) == plain


def test_without_a_config_the_usual_marks_are_found_and_written_down(tmp_path: Path):
    from transformers import AutoTokenizer

    tokenizer = load_tokenizer(foreign_folder(tmp_path) / "tokenizer.json")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    tokenizer.save(tmp_path / "copy")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "copy", trust_remote_code=False)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)


def test_a_tokenizer_of_transformers_without_a_backend(tmp_path: Path):
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path / "byt5")
    tokenizer = load_tokenizer(tmp_path / "byt5")
    assert isinstance(tokenizer, PythonTokenizer)
    assert tokenizer.eos_id == 1
    assert tokenizer.encode("hé") == [107, 198, 172]
    assert tokenizer.encode_batch(["h"], add_special_tokens=True) == [[107, 1]]
    assert tokenizer.decode([107, 198, 172, 1, 10_000]) == "hé"
    tokenizer.save(tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").encode("hé") == [107, 198, 172]


@given(st.lists(st.integers(0, BPE.vocab_size + 5)))
@settings(max_examples=300)
def test_streamed_pieces_are_the_whole(ids: list[int]):
    """For any ids: half characters, ends in the middle, ids outside the vocabulary."""
    stream = StreamDecoder(BPE)
    assert "".join(map(stream.add, ids)) + stream.flush() == BPE.decode(ids)


def test_a_stream_never_splits_a_character():
    text = "é世👩‍👩‍👧"
    one_id_per_byte = train_bpe([], vocab_size=257)
    stream = StreamDecoder(one_id_per_byte)
    pieces = [stream.add(id) for id in one_id_per_byte.encode(text)]
    assert [piece for piece in pieces if piece] == list(text)
    assert stream.add(one_id_per_byte.encode("世")[0]) == ""
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"
    assert stream.flush() == ""


def test_a_stream_keeps_the_spaces_that_sentencepiece_writes(tmp_path: Path):
    from tokenizers import Tokenizer, decoders, models

    vocab = [("<unk>", 0.0), ("\u2581a", -1.0), ("\u2581b", -1.0)]
    backend = Tokenizer(models.Unigram(vocab, unk_id=0))
    backend.decoder = decoders.Metaspace()
    tokenizer = SubwordTokenizer(backend, eos_token=None)
    stream = StreamDecoder(tokenizer)
    assert [stream.add(id) for id in (1, 2, 1)] == ["a", " b", " a"]


def refused(path: Path | str, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_tokenizer(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_what_is_not_a_tokenizer_is_refused_with_what_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    refused(tmp_path, "tokenizer.json", "char_tokenizer.json", "tokenizer.model")
    refused(tmp_path / "nothing", "no such tokenizer file or folder", str(Path.cwd()))
    refused("missing.json", "no such tokenizer file or folder")
    refused("here/nothing", "no such tokenizer file or folder")
    broken = tmp_path / "tokenizer.json"
    for text in (
        "{",
        '{"model": 1}',
        "[]",
        '{"type": "char"}',
        '{"type": "char", "characters": "aa"}',
    ):
        broken.write_text(text)
        refused(broken)
    broken.write_bytes(b"\xff\xfe")
    refused(broken, "is not a tokenizer file")


def test_broken_companions_are_refused(tmp_path: Path):
    BPE.save(tmp_path)
    for text in ("{", "7"):
        (tmp_path / "tokenizer_config.json").write_text(text)
        refused(tmp_path, "tokenizer_config.json", "is not a JSON object")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": 5}')
    refused(tmp_path, "tokenizer_config.json", "eos_token is 5; it must be a token's text")


def test_marks_that_the_vocabulary_lacks_are_known(tmp_path: Path):
    BPE.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>", "bos_token": null}')
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, SubwordTokenizer)
    assert (loaded.eos_id, loaded.absent) == (None, ["</s>"])


def test_a_folder_that_transformers_cannot_read_is_refused(tmp_path: Path):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "NoSuchTokenizer"}')
    refused(tmp_path, "transformers cannot load this tokenizer")


def test_a_vocabulary_that_is_too_small_is_refused():
    with pytest.raises(UserError, match=re.escape("vocab_size=256 is too small")):
        train_bpe(["a"], vocab_size=256)


def test_a_char_tokenizer_without_characters_works():
    assert CharTokenizer("").encode("a") == [0]
