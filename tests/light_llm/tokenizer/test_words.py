"""Words that are cut before a BPE is trained on them."""

import random
import re
import time

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from light_llm.tokenizer import train_bpe, words
from light_llm.tokenizer.words import ShortWords

SPLIT = pre_tokenizers.ByteLevel(add_prefix_space=False)
PARTS = ("a", "!", "7", "世", "\n", " ", "\x1c", "\x85", "\t", "é", "'", "s", "re", "ll", "\u2028")


def split(text: str) -> list[str]:
    return [text[start:end] for _, (start, end) in SPLIT.pre_tokenize_str(text)]


def texts(number: int) -> list[str]:
    draw = random.Random(3)
    return [
        "".join(draw.choice(PARTS) * draw.randint(1, 9) for _ in range(draw.randint(1, 15)))
        for _ in range(number)
    ]


def test_long_words_are_cut_and_nothing_else_changes(monkeypatch):
    """By the words of the library itself, with short limits, so that all of it happens often."""
    monkeypatch.setattr(words, "LONGEST_WORD", 5)
    monkeypatch.setattr(words, "WINDOW", 13)
    monkeypatch.setattr(words, "_SPACES", re.compile(r"\s{5}"))
    for text in texts(5000):
        short = ShortWords([text])
        given = list(short)
        assert "".join(given) == text
        cut = [word[at : at + 5] for word in split(text) for at in range(0, len(word), 5)]
        assert [word for piece in given for word in split(piece)] == cut, repr(text)
        assert short.cut == sum(len(word) > 5 for word in split(text))


def test_texts_without_long_words_are_given_as_they_are():
    few = [*texts(50), "x" * 1000, " " * 1000, ("word " * 999 + "\n") * 9, "1a" * 3000]
    assert list(ShortWords(few)) == few


def test_the_merges_are_those_of_the_librarys_own_training():
    sample = [*texts(300), "x" * 1000 + " " + "y" * 999]
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer = SPLIT
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    theirs.train_from_iterator(
        sample,
        trainers.BpeTrainer(
            vocab_size=400,
            min_frequency=2,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    assert train_bpe(sample, 400).backend.get_vocab() == theirs.get_vocab()


@pytest.mark.parametrize("letters", ["ACGT", " \t\xa0", "+-"])
def test_a_word_of_any_length_is_trained_on_in_time_that_grows_with_it(letters):
    text = "".join(random.Random(0).choices(letters, k=300_000))
    start = time.process_time()
    assert train_bpe([text], 300).vocab_size > 257
    assert time.process_time() - start < 10  # whole, it takes minutes
