"""Training a BPE, in a process that a signal ends."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from light_llm.errors import UserError
from light_llm.preprocess.trainer import BpeTrainer
from light_llm.tokenizer import train_bpe

DNA = "".join(random.Random(0).choices("ACGT", k=10_000))


@pytest.fixture(scope="module")
def dna(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dna") / "dna.txt"
    path.write_text("".join(random.Random(0).choices("ACGT", k=4_000_000)))
    return path


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_it_and_the_training_at_once(start, dna, number):
    """In a fraction of a second where the machine is free; the training would take a minute."""
    with start("--input", dna, "--output", "out", "--vocab-size", 50_000) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("training the tokenizer"):
            assert process.poll() is None
        (trainer,) = children(process.pid)
        process.send_signal(number)
        sent = time.monotonic()
        killed = number == signal.SIGKILL
        assert process.wait(timeout=10) == (-number if killed else 128 + number)
        while os.path.exists(f"/proc/{trainer}") and time.monotonic() < sent + 10:
            time.sleep(0.02)
        assert not os.path.exists(f"/proc/{trainer}")
        assert "Traceback" not in process.stderr.read()


def test_long_words_are_cut_with_a_note_and_written_whole(run, rows, tmp_path):
    (tmp_path / "a.txt").write_text(DNA[:9000] + " and a word\n" + DNA[:2000])
    done = run("--input", "a.txt", "--output", "out", "--vocab-size", 300, "--val-fraction", 0)
    assert done.returncode == 0, done.stderr
    assert "note: 2 words are longer than 1,000 characters" in done.stderr
    saved = (tmp_path / "out/tokenizer/tokenizer.json").read_text()
    text = (tmp_path / "a.txt").read_text()
    assert saved == train_bpe([text], 300).backend.to_str(pretty=True)
    (row,) = rows(tmp_path / "out/train")
    assert train_bpe([text], 300).decode(row["tokens"]) == text


def test_a_training_that_dies_is_told():
    with BpeTrainer(300, 2) as trainer:
        os.kill(trainer._process.pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"exit code -9; .* fewer --train-characters"):
            trainer.train()
