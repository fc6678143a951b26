"""--dry-run says what a run would make, near to what it makes, and writes nothing."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
from in_process import call

from light_llm.cli import preprocess as command
from light_llm.errors import UserError
from light_llm.preprocess import PreprocessConfig, preprocess
from light_llm.preprocess.dryrun import estimate

WORDS = [
    "the",
    "of",
    "and",
    "cat",
    "dog",
    "sees",
    "likes",
    "small",
    "large",
    "river",
    "mountain",
    "under",
    "over",
]


def text(draw: random.Random) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randrange(50, 400)))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Text, JSON lines plain and compressed, and files of which each is of another size."""
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    Path("in").mkdir()
    for number in range(30):
        Path(f"in/{number}.txt").write_text(text(draw))
    for number in range(4):
        rows = [json.dumps({"text": text(draw), "id": n}) for n in range(200 * (number + 1))]
        Path(f"in/{number}.jsonl").write_text("\n".join(rows))
        with gzip.open(f"in/{number}.jsonl.gz", "wt") as file:
            file.write("\n".join(rows))
    return tmp_path


def config(**changes) -> PreprocessConfig:
    given = {"input": ("in",), "output": Path("out"), "workers": 1, "vocab_size": 300}
    return PreprocessConfig(**(given | changes))


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_the_estimate_is_near_and_nothing_is_written(folder, kind):
    changes = {"tokenizer": kind} | ({"vocab_size": None} if kind == "char" else {})
    before = sorted(folder.rglob("*"))
    found = estimate(config(**changes))
    assert sorted(folder.rglob("*")) == before
    made = preprocess(config(**changes))
    sides = (made.train, made.val)
    assert found.documents == pytest.approx(sum(side.documents for side in sides), rel=0.1)
    assert found.characters == pytest.approx(sum(side.characters for side in sides), rel=0.1)
    assert found.tokens == pytest.approx(sum(side.tokens for side in sides), rel=0.1)
    written = sum(path.stat().st_size for path in Path("out").rglob("*.parquet"))
    assert found.shard_bytes == pytest.approx(written, rel=0.25)


def test_the_command_lists_the_files(folder):
    ended = call(command.main, "--input", "in", "--output", "out", "--dry-run")
    assert ended.exit_code == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert [line.split()[-1] for line in lines[:38]] == sorted(
        f"in/{path.name}" for path in Path("in").iterdir()
    )
    assert lines[38].startswith("input: 38 files, ")
    assert any(line.startswith("tokens: about ") for line in lines)
    assert lines[-1].endswith("Nothing is written.")
    assert not Path("out").exists()


def test_what_has_no_size_or_no_text_is_refused(folder):
    with pytest.raises(UserError, match="--dry-run estimates from the sizes of files"):
        estimate(PreprocessConfig(hf_dataset="in", output=Path("out")))
    Path("blank").mkdir()
    Path("blank/a.txt").write_text("   \n")
    with pytest.raises(UserError, match="the sample has no documents"):
        estimate(config(input=("blank",)))
    Path("out/train").mkdir(parents=True)
    Path("out/train/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="out"):
        estimate(config())
