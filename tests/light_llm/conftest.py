from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forked
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from light_llm.tokenizer import SubwordTokenizer, train_bpe

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything of Hugging Face is imported

TEXTS = [
    "The quick brown fox jumps over the lazy dog.\n" * 3,
    "def f(x):\r\n\treturn x * 2  # no line end is touched\r\n",
    "Grüße, 世界! 👩‍👩‍👧 é\u0301 \u2028 \ufffd <|endoftext|> tail",
    "  leading and trailing white space \n\n\n",
    "a" * 5000,
]


@pytest.fixture(scope="session")
def bpe() -> SubwordTokenizer:
    return train_bpe(TEXTS, vocab_size=300)


@pytest.fixture(scope="session")
def saved_bpe(bpe: SubwordTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "bpe"
    bpe.save(folder)
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder of TEXTS, a file each, in the order of TEXTS."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_bytes(text.encode())
    return folder


@pytest.fixture
def rows() -> Callable[[Path], list[dict]]:
    """All documents below a folder of shards, in order."""

    def read(folder: Path) -> list[dict]:
        return [row for file in sorted(folder.rglob("*.parquet")) for row in _rows(file)]

    return read


def _rows(file: Path) -> list[dict]:
    return pq.read_table(file, page_checksum_verification=True).to_pylist()


@pytest.fixture
def write_parquet() -> Callable[..., None]:
    def write(path: Path, texts: list, column: str = "text") -> None:
        pq.write_table(pa.table({"id": range(len(texts)), column: texts}), path)

    return write


@pytest.fixture
def files() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder, hidden ones too: its relative path and its bytes."""

    def read(folder: Path) -> dict[str, bytes]:
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in found}

    return read


Run = Callable[..., "subprocess.CompletedProcess[str]"]
COMMAND = Path(sys.executable).with_name("llm-preprocess")


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start the real console script, in tmp_path."""

    def start_command(*flags: object) -> subprocess.Popen[str]:
        return forked.Process(
            [str(COMMAND), *map(str, flags)],
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start_command


@pytest.fixture
def run(start: Callable[..., subprocess.Popen[str]]) -> Run:
    """Run the real console script to its end."""

    def run_command(*flags: object) -> subprocess.CompletedProcess[str]:
        with start(*flags) as process:
            out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run_command
