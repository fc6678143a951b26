"""gigatoken gives the ids of tokenizers, or is not asked."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizer_families import (
    FAMILIES,
    byte_level,
    documents,
    family,
    llama2,
    plain_bytes,
    revealing,
)
from tokenizers import AddedToken, processors

from light_llm.preprocess import engine
from light_llm.preprocess.battery import PIECES, battery
from light_llm.preprocess.disputed import CODE_POINTS, holds_disputed, seen, table
from light_llm.preprocess.encode import encode
from light_llm.preprocess.engine import FastTokenizer
from light_llm.preprocess.proven import check_form, check_ids
from light_llm.tokenizer import SubwordTokenizer

FAST = pytest.mark.parametrize("name", FAMILIES)
HAN = "\U000323b0"  # of Unicode 17


def assert_same(tokenizer: SubwordTokenizer, texts: list[str], special: bool = False) -> None:
    fast = FastTokenizer(tokenizer)
    pairs = zip(texts, fast.encode_all(texts, special).rows(), strict=True)
    for (text, got), ids in zip(pairs, tokenizer.encode_batch(texts, special), strict=True):
        assert got.dtype == np.int32
        assert got.tolist() == ids, ascii(text)


@FAST
def test_random_documents_have_the_same_ids(name: str):
    check_form(family(name))
    texts = list(documents(3000))
    fast = FastTokenizer(family(name))
    assert sum(map(fast.takes, texts)) > 1500
    assert_same(family(name), texts)


@pytest.mark.slow
@FAST
def test_a_hundred_thousand_random_documents_have_the_same_ids(name: str):
    for seed in range(10):
        assert_same(family(name), list(documents(10_000, seed=100 + seed)))


@pytest.mark.parametrize("name", ["ours", "Qwen 2", "Llama 2"])
def test_the_battery_finds_no_difference(name: str):
    check_ids(FastTokenizer(family(name)), list(battery()), False)


def codes_of(fast: Any, reference: Any, context: Callable[[str], str]) -> Iterator[int]:
    """Code points that are not disputed, and whose context has different ids."""

    def differing(codes: list[int]) -> Iterator[int]:
        text = "".join(context(chr(code)) for code in codes)
        if fast.encode(text).tolist() == reference.encode(text).ids:
            return
        if len(codes) == 1:
            yield from codes
        else:
            yield from differing(codes[: len(codes) // 2])
            yield from differing(codes[len(codes) // 2 :])

    known = np.flatnonzero(~table()).tolist()
    for start in range(0, len(known), 512):
        yield from differing(known[start : start + 512])


CONTEXTS = {
    "words": lambda c: (
        f"a{c}a 1{c}1 {c}'s {c}{c}'s !{c}! Z{c}Z \n{c}\n a{c}1 1{c}a {c}\n!  {c}中{c}"
    ),
    "apostrophes": lambda c: f"a'{c}a a'{c}ea a'l{c}a a'{c}la '{c}{c}a ",
    "accents": lambda c: f"a\u0345{c}a{c}\u0334a{c}a\u0301{c} {c}\u0323{c}\u0301",
}


@pytest.mark.slow
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", ["GPT-2", "Llama 3", "Qwen 2", "Qwen 3.5", "GPT-4o"])
def test_every_code_point_that_is_not_disputed_is_split_and_normalized_alike(
    name: str, context: str
):
    tokenizer = revealing(family(name))
    tokenizer.post_processor = None
    fast = engine._load(tokenizer.to_str())
    assert list(codes_of(fast, tokenizer, CONTEXTS[context])) == []


def test_all_that_composes_composes_alike():
    """Pairs that NFC joins, marks that it sorts, and the syllables of Hangul."""
    tokenizer = family("Qwen 2")
    marks: dict[int, str] = {}
    for code in np.flatnonzero(~table()):
        marks.setdefault(unicodedata.combining(chr(code)), chr(code))
    texts = []
    for code in np.flatnonzero(~table()):
        character = chr(code)
        if unicodedata.combining(character):
            texts.append("".join(f"a{character}{m}a{m}{character}" for m in marks.values()))
        elif (full := unicodedata.normalize("NFD", character)) != character and code < 0xAC00:
            texts.append(f"{full} a{full}\u0301a{full}\u0323{full}")
    texts += [unicodedata.normalize("NFD", chr(code)) for code in range(0xAC00, 0xD7A4, 7)]
    assert_same(tokenizer, texts)


def test_what_python_does_not_know_is_disputed_and_so_is_what_was_seen_to_differ():
    ranges = [code for codes in seen() for code in codes]
    unknown = [c for c in range(CODE_POINTS) if unicodedata.category(chr(c)) in ("Cn", "Cs")]
    assert set(np.flatnonzero(table())) == {*ranges, *unknown}
    assert not holds_disputed("".join(PIECES))
    for far in (0, 2**20 - 1, 2**20, 2**21 + 5):
        assert holds_disputed("é" * far + HAN)


@FAST
def test_a_document_with_a_disputed_character_has_the_ids_of_tokenizers(name: str):
    texts = [f"{chr(c)}'s a{chr(c)}1" for codes in seen() for c in (codes.start, codes[-1])]
    assert not any(map(FastTokenizer(family(name)).takes, texts))
    assert_same(family(name), texts)


@pytest.mark.parametrize(
    "flags", [{}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"normalized": False}]
)
@pytest.mark.parametrize("splits", [False, True])
def test_added_tokens_that_a_text_spells_out_keep_their_rule(flags: dict, splits: bool):
    backend = byte_level(plain_bytes())
    backend.add_tokens([AddedToken("<tag>", **flags), AddedToken("    ", normalized=False)])
    backend.add_special_tokens([AddedToken("[MASK]", **flags)])
    backend.encode_special_tokens = splits
    pieces = ("<|endoftext|>", "<tag>", "[MASK]", "    ", " ", "it's", "a", "\n")
    texts = [f"{a}{b}{c}" for a in pieces for b in pieces for c in pieces]
    assert_same(SubwordTokenizer(backend, "<|endoftext|>"), texts)


@pytest.mark.parametrize("template", ["<s> $A </s>", "<s> $A", "$A </s>", "<s> <s> $A"])
def test_a_template_adds_its_tokens_and_the_marks_come_once(template: str):
    backend = llama2()
    ends = [("<s>", 1), ("</s>", 2)]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    tokenizer = SubwordTokenizer(backend, "</s>", "<s>")
    texts = ["", "a", "it's 中文", "<s>a", "a</s>", HAN]
    for special in (False, True):
        assert_same(tokenizer, texts, special)
        fast = encode(texts, FastTokenizer(tokenizer), special)
        for got, ids in zip(fast.rows(), encode(texts, tokenizer, special).rows(), strict=True):
            assert got.tolist() == ids.tolist()


def test_a_long_word_and_a_repeated_text_have_the_same_ids():
    for name in ("GPT-2", "Llama 2"):
        text = "".join(PIECES)
        assert_same(family(name), ["ab7" * 30_000, text * 50, text, text, " " * 9999, "\0" * 999])


@pytest.mark.parametrize("told", [True, False])
def test_the_cache_is_renewed_and_the_ids_stay(told: bool, monkeypatch: pytest.MonkeyPatch):
    """Where the system does not tell how much a process holds, the text is counted."""
    tokenizer, texts = family("GPT-2"), list(documents(300))
    if not told:
        monkeypatch.setattr(engine, "_STATUS", Path("/nowhere"))
    fast = FastTokenizer(tokenizer)
    fast.encode_all(texts)
    assert fast.renewals == 0
    monkeypatch.setattr(engine, "CACHE_BYTES", -1 if told else 16 * 100)
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert fast.encode_all([text]).values.tolist() == ids
    assert fast.renewals > 20


@pytest.mark.slow
def test_the_cache_of_words_is_bounded():
    """67 MB of words that come once; without a bound they would take 640 MB."""
    draw = np.random.default_rng(0)
    fast = FastTokenizer(family("GPT-2"))
    before, most = engine._resident(), 0
    if before is None:
        pytest.skip("the system does not tell how much a process holds")
    for _ in range(700):
        letters = draw.integers(97, 123, (16_000, 6), np.uint8)
        letters[:, 0] = 32
        fast.encode_all([letters.tobytes().decode()])
        most = max(most, (engine._resident() or 0) - before)
    assert fast.renewals > 1
    assert most < 2 * engine.CACHE_BYTES
