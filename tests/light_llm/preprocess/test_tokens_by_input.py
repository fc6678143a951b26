"""The summary's tokens by input: every document counts for the input that it came from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from light_llm.preprocess import PreprocessConfig, preprocess


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code/a.py").write_text("x = 1\n")
    (tmp_path / "code/b.py").write_text("y = 2\n" * 400_000)  # in pieces
    (tmp_path / "code/c:7").write_text("the name ends as if it were line 7")
    rows = [json.dumps({"text": f"page {n} " * (n + 1)}) for n in range(50)]
    (tmp_path / "wiki.jsonl").write_text("\n".join(rows))
    (tmp_path / "none.jsonl").write_text('{"text": ""}\n')
    return tmp_path


@pytest.mark.parametrize("options", [{}, {"shuffle_seed": 3}, {"parts": 2}])
def test_tokens_by_input_are_those_of_its_documents(corpora: Path, options: dict):
    names = tuple(str(corpora / name) for name in ("wiki.jsonl", "code", "none.jsonl", "code/a.py"))

    def go(output: str, *inputs: str, **options: object):
        common = {"input": inputs, "output": corpora / output, "tokenizer": "char"}
        return preprocess(PreprocessConfig.model_validate(common | options))

    summary = go("out", *names, shard_size=100_000, **options)
    assert [each.name for each in summary.inputs] == list(names)
    for each in summary.inputs[:2]:
        alone = go(f"alone-{Path(each.name).stem}", each.name, val_fraction=0)
        assert alone.inputs == ()
        assert (each.documents, each.tokens) == (alone.train.documents, alone.train.tokens)
    assert [each.tokens for each in summary.inputs[2:]] == [0, 0]  # read once, for the folder
    whole = summary.train.tokens + summary.val.tokens
    assert sum(each.tokens for each in summary.inputs) == whole


def test_names_that_are_not_utf_8_are_told_apart(tmp_path: Path):
    names = [os.fsdecode(name) for name in (b"\xff.txt", b"\xfe.txt", rb"\xff.txt", b"\xff.jsonl")]
    for number, name in enumerate(names, start=1):
        text = json.dumps({"text": "x" * number})
        (tmp_path / name).write_text(text if name.endswith("jsonl") else "x" * number)
    config = {"input": [str(tmp_path / name) for name in names], "output": str(tmp_path / "out")}
    summary = preprocess(PreprocessConfig.model_validate(config | {"tokenizer": "char"}))
    assert [each.documents for each in summary.inputs] == [1, 1, 1, 1]
    tokens = [each.tokens for each in summary.inputs]
    assert [more - tokens[0] for more in tokens] == [0, 1, 2, 3]


def test_the_command_prints_them(corpora: Path, run: Callable):
    done = run("--input", "wiki.jsonl", "--input", "code", "--output", "out", "--tokenizer", "char")
    assert done.returncode == 0, done.stderr
    found = re.findall(
        r"^from (.*): ([\d,]+) documents, [\d,]+ tokens \(([\d.]+)%\)$", done.stdout, re.M
    )
    assert [(name, number) for name, number, _ in found] == [("wiki.jsonl", "50"), ("code", "5")]
    assert abs(sum(float(share) for *_, share in found) - 100) < 0.2
