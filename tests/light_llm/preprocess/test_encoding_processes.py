"""Processes and threads that work beside a run: the same results in the same order, and errors."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from light_llm.errors import UserError
from light_llm.preprocess.ahead import in_threads
from light_llm.preprocess.encode import Encoders, encode
from light_llm.tokenizer import SubwordTokenizer


def test_processes_give_what_one_gives(saved_bpe: Path, bpe: SubwordTokenizer):
    texts = [[f"chunk {i} text {j} " * (j + 1) for j in range(i % 5 + 1)] for i in range(12)]
    with Encoders(saved_bpe, workers=2) as encoders:
        results = list(in_threads(encoders.encode, texts, 2))
    for ids, chunk in zip(results, texts, strict=True):
        expected = encode(chunk, bpe)
        np.testing.assert_array_equal(ids.values, expected.values)
        np.testing.assert_array_equal(ids.lengths, expected.lengths)


@pytest.mark.parametrize("fails", [False, True])
def test_results_of_threads_come_in_order_and_errors_behind_them(fails: bool):
    def numbers() -> Iterator[int]:
        yield from range(20)
        raise UserError("the input ends here")

    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        if number == 12 and fails:
            raise UserError("the work fails")
        return number

    got: list[int] = []

    def take_all() -> None:
        for result in in_threads(work, numbers(), 3):
            got.append(result)

    with pytest.raises(UserError, match="the work" if fails else "the input"):
        take_all()
    assert got == list(range(12 if fails else 20))


def test_a_process_that_dies_is_an_error(saved_bpe: Path, monkeypatch: pytest.MonkeyPatch):
    started, start = [], subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *args, **kw: started.append(start(*args, **kw)) or started[-1]
    )
    with Encoders(saved_bpe, workers=1) as encoders:
        started[0].kill()
        with pytest.raises(UserError, match="ended with exit code -9; if memory is short"):
            encoders.encode(["text"])
