"""A Hugging Face dataset from a stranger: its card may not name the user's files or other servers.

The files that it names become the text of shards, which may be published.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("datasets")

from light_llm.errors import UserError
from light_llm.preprocess.config import PreprocessConfig
from light_llm.preprocess.huggingface import check_files, open_hub
from light_llm.preprocess.rows import RowText


def opened(folder: Path) -> list[str]:
    config = PreprocessConfig(hf_dataset=str(folder), output=str(folder.parent / "out"))
    (corpus,) = open_hub(config, RowText(("text",), None))
    return [document.text for document in corpus.documents()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.jsonl").write_text(json.dumps({"text": "its own"}))
    (tmp_path / "private.txt").write_text("a private line")
    return tmp_path / "set"


@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize(
    "value",
    [
        "data_files: ../private.txt",
        "data_files: {path}/private.txt",
        "data_files: [{{split: train, path: ['a.jsonl', '{path}/private.txt']}}]",
        "data_files: file://{path}/private.txt",
        "data_files: http://192.0.2.1/a.txt",
        "data_files: zip://a.txt::http://192.0.2.1/a.zip",
        "data_dir: ..",
    ],
)
def test_a_card_that_names_files_elsewhere_is_refused(folder, card, value):
    marks = "---" if card == "README.md" else ""
    value = value.format(path=folder.parent)
    (folder / card).write_text(f"{marks}\nconfigs:\n- config_name: default\n  {value}\n{marks}\n")
    with pytest.raises(UserError, match="outside its folder"):
        opened(folder)


def test_a_card_that_names_its_own_files_is_read(folder):
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: '*.jsonl'\n---\n"
    )
    assert opened(folder) == ["its own"]


def test_a_card_that_is_a_fifo_does_not_hang(folder):
    os.mkfifo(folder / "README.md")
    with pytest.raises(UserError, match="is a FIFO"):
        opened(folder)


def test_files_of_a_dataset_on_the_hub_are_on_the_hub():
    check_files("a/b", None, ["hf://datasets/a/b@0/x.parquet", "zip://m::hf://datasets/a/b@0/z"])
    for file in ("/home/me/.ssh/id", "file:///etc/passwd", "https://192.0.2.1/x", "zip://a::/b"):
        with pytest.raises(UserError, match="not part of it"):
            check_files("a/b", None, [file])
