"""What a run says of its progress: from the first second on, on a terminal and in a file."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from terminal import on_terminal

from light_llm.preprocess.corpus import FileCorpus
from light_llm.preprocess.files import find_files
from light_llm.preprocess.progress import Progress
from light_llm.preprocess.rows import RowText
from light_llm.preprocess.stream import Position, chunks

SLOW = """import time
def adapt(row):
    time.sleep(0.02)
    return row["text"]
"""
FLAGS = ("--input", "a.jsonl", "--adapter-module", "slow.py", "--workers", 1, "--vocab-size", 300)


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """150 documents, each of which takes 20 ms to read."""
    lines = (json.dumps({"text": f"{i} is not {i + 1}. " * 9}) + "\n" for i in range(150))
    (tmp_path / "a.jsonl").write_text("".join(lines))
    (tmp_path / "slow.py").write_text(SLOW)
    return tmp_path


def test_a_file_gets_a_line_after_a_second_and_one_at_the_end_of_a_phase(
    slow: Path, start: Callable
):
    with start(*FLAGS, "--output", "out") as process:
        first = next(line for line in process.stderr if line.startswith("reading: "))
        assert process.poll() is None
        assert re.search(r"^reading: (0:00:01|\d+ documents, [\d,]+ characters, )", first)
        out, rest = process.communicate(timeout=60)
    assert process.returncode == 0
    assert re.search(r"^reading: 150 documents, [\d,]+ characters, .*, 0:00:0\d$", rest, re.M)
    assert re.search(r"^reading the first documents: 0:00:01$", rest, re.M)
    assert re.search(r"^tokenizing: 150 documents, [\d,]+ tokens, [\d,]+ tokens/s, ", rest, re.M)
    assert "tokenizing" not in out


def test_a_terminal_shows_it_in_lines_that_fit(slow: Path):
    code, written = on_terminal("llm-preprocess", *FLAGS, "--output", "out", cwd=slow, columns=80)
    assert code == 0, written
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())
    lines = re.split(r"[\r\n]+", text)
    progress = [line for line in lines if line.startswith(("reading", "tokeniz", "training"))]
    assert len({line for line in progress if re.match(r"reading \d+ documents", line)}) > 3
    assert "training the tokenizer" in text
    assert max(map(len, progress)) <= 80
    assert re.search(r"reading 150 documents, [\d.]+ k characters, [\d.]+ k characters/s", text)


@pytest.mark.parametrize("shuffle_seed", [None, 1])
def test_the_share_of_the_input_grows_to_1(tmp_path: Path, write_parquet: Callable, shuffle_seed):
    (tmp_path / "a.txt").write_text("word " * 700_000)
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n' * 5000)
    write_parquet(tmp_path / "c.parquet", ["some text"] * 3000)
    corpus = FileCorpus(find_files([str(tmp_path)])[0], RowText(("text",)))
    parts = [*chunks(corpus, shuffle_seed, Position())]
    read = [part.read for part in parts]
    whole = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert read == sorted(read)
    assert 0 < read[0] < whole or shuffle_seed is not None  # the buffer holds all of it
    assert read[-1] == whole
    if shuffle_seed is None:
        again = [*chunks(corpus, None, parts[2].start)]
        assert [part.read for part in again] == read[2:]


def test_a_line_tells_bytes_and_share(capsys: pytest.CaptureFixture):
    with Progress("tokenizing") as progress:
        progress.advance(documents=3, tokens=5000)
        progress.show_read(1_000_000, 4_000_000)
        time.sleep(1.1)
    first, *_ = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"tokenizing: 3 documents, 5,000 tokens, [\d,]+ tokens/s, 1\.0 of 4\.0 MB, 25%", first
    )
