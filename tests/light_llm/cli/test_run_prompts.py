"""llm-run with several prompts, with none, and with bytes that are not text."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import Ended, call
from safetensors.torch import save_file
from torch_cases import lively, tiny

from light_llm.cli.run import main
from light_llm.errors import UserError
from light_llm.generate import generate_batch
from light_llm.sampling import Sampling
from light_llm.text import encode_prompt
from light_llm.tokenizer import load_tokenizer, train_bpe, train_char

SCRIPT = shutil.which("llm-run", path=Path(sys.executable).parent)
TEXT = "the cat sat on the mat and the dog sat on the log, größer 🙂 than before. "
PROMPTS = ["the cat", "a", "on the log, größer"]
FLAGS = ("--max-tokens", "9", "--seed", "3", "--device", "cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A run's folder with the tag `best` and a tokenizer beside it, which no config names."""
    folder = tmp_path_factory.mktemp("run")
    train_char([TEXT]).save(folder / "tokenizer")
    model = lively(tiny(vocab_size=40))
    state = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    save_file(state, folder / "best.safetensors")
    (folder / "best.config.json").write_text(json.dumps({"model": model.cfg.model_dump()}))
    return folder


def llm_run(checkpoint: Path, *flags: object) -> Ended:
    return call(main, "--checkpoint", checkpoint, *FLAGS, *flags)


def written(checkpoint: Path, *flags: object) -> str:
    done = llm_run(checkpoint, *flags)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def script(checkpoint: Path, *flags: str | bytes, **options) -> subprocess.CompletedProcess[bytes]:
    assert SCRIPT is not None
    command = [SCRIPT, "--checkpoint", str(checkpoint), *FLAGS, *flags]
    return subprocess.run(command, capture_output=True, timeout=60, **options)


def in_order(texts: list[str]) -> str:
    return "\n".join(f"==> {n} of {len(texts)} <==\n{t}\n" for n, t in enumerate(texts, start=1))


def test_several_prompts_are_one_batch_and_printed_in_order(checkpoint):
    tokenizer = load_tokenizer(checkpoint / "tokenizer")
    sampling = Sampling(9, temperature=0.8, seed=3)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    texts = list(PROMPTS)
    for row in generate_batch(lively(tiny(vocab_size=40)), prompts, sampling, tokenizer.eos_id):
        for n, id in enumerate(row):
            texts[n] += "" if id is None else tokenizer.decode([id])

    flags = [flag for prompt in PROMPTS for flag in ("--prompt", prompt)]
    done = script(checkpoint, *flags)
    assert done.stdout.decode() == in_order(texts), done.stderr
    speed = r"\d+ tokens after 3 prompts in \d+\.\d\d s: \d+\.\d tokens/s\n"
    assert re.fullmatch(speed, done.stderr.decode())
    assert written(checkpoint, *flags, "--backend", "jax") == in_order(texts)


def test_a_prompt_has_the_same_text_whatever_the_batch_size(checkpoint, tmp_path):
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    from_file = ("--prompt", "the dog", "--prompts-file", tmp_path / "p.txt")
    at_once = written(checkpoint, *from_file)
    assert at_once.count("==> ") == 4
    for size in (1, 2, 3):
        assert written(checkpoint, *from_file, "--batch-size", size) == at_once
    assert written(checkpoint, *from_file, "--batch-size", 3, "--backend", "jax") == at_once


def test_a_file_of_prompts_is_lines_or_json_lines(checkpoint, tmp_path):
    text, lines = tmp_path / "p.txt", tmp_path / "p.jsonl"
    text.write_bytes("the cat\r\n\non the log, größer\n".encode())
    rows = [{"prompt": prompt, "id": 1} for prompt in ("the cat", "", "on the log, größer")]
    lines.write_text("\n\n".join(map(json.dumps, rows)))
    out = written(checkpoint, "--prompts-file", text)
    assert out == written(checkpoint, "--prompts-file", lines)
    assert out.count("==> ") == 3
    text.write_text("the cat\n")  # one is one, as with --prompt
    alone = written(checkpoint, "--prompts-file", text)
    assert alone == written(checkpoint, "--prompt", "the cat")


def test_a_file_of_prompts_that_cannot_be_met_is_a_message(checkpoint, tmp_path):
    path, lines = tmp_path / "p.txt", tmp_path / "p.jsonl"

    def message(file: Path, content: str) -> str:
        file.write_text(content)
        done = llm_run(checkpoint, "--prompts-file", file)
        assert (done.exit_code, done.stdout) == (2, "")
        return done.stderr

    assert "holds no prompt" in message(path, "")
    assert "p.txt, line 2: the prompt's 51 tokens leave no room" in message(
        path, f"a\n{'the' * 17}"
    )
    assert 'p.jsonl, line 1: must be an object as {"prompt"' in message(lines, '["the"]')
    assert "p.jsonl, line 1: not valid JSON" in message(lines, "the")
    gone = llm_run(checkpoint, "--prompts-file", tmp_path / "none")
    assert (gone.exit_code, "No such file" in gone.stderr) == (2, True)


def test_an_empty_prompt_begins_a_document(checkpoint, tmp_path):
    tokenizer = load_tokenizer(checkpoint / "tokenizer")
    sampling = Sampling(9, temperature=0.8, seed=3)
    rows = generate_batch(lively(tiny(vocab_size=40)), [[tokenizer.eos_id]], sampling, 1)
    assert written(checkpoint, "--prompt", "") == tokenizer.decode([row[0] for row in rows]) + "\n"

    bpe = train_bpe([TEXT], 260)
    bpe.save(tmp_path)

    def ids(marks: dict[str, str | None]) -> list[int]:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(marks))
        return encode_prompt(load_tokenizer(tmp_path), "")

    a, b = (bpe.encode(letter) for letter in "ab")
    assert ids({"bos_token": "a", "eos_token": "b"}) == a
    assert ids({"eos_token": "b"}) == b
    with pytest.raises(UserError, match="neither BOS nor EOS"):
        ids({"bos_token": None, "eos_token": None})


RAW = b"\x1b[31mthe\x1b[0m \x07\xff\xe2\x82 caf\xc3\xa9"


def test_a_pipe_gets_the_bytes_of_the_prompt_unchanged(checkpoint, tmp_path):
    alone = script(checkpoint, "--prompt", RAW)
    assert alone.stdout.startswith(RAW), alone.stderr
    (tmp_path / "p.txt").write_bytes(b"the\n" + RAW + b"\n")
    of_file = script(checkpoint, "--prompts-file", str(tmp_path / "p.txt"))
    assert b"==> 2 of 2 <==\n" + RAW in of_file.stdout
    typed = script(checkpoint, "--interactive", input=RAW + b"\rx\n")
    assert typed.stdout.startswith(RAW + b"\rx"), typed.stderr


def test_a_terminal_gets_control_characters_spelt_out(checkpoint):
    assert SCRIPT is not None
    ours, theirs = pty.openpty()
    command = [SCRIPT, "--checkpoint", checkpoint, *FLAGS, "--prompt", RAW]
    assert subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE).returncode == 0
    assert os.read(ours, 4096).startswith(rb"\x1b[31mthe\x1b[0m \x07\udcff\udce2\udc82 caf")
    os.close(theirs)
    os.close(ours)


def test_a_runs_folder_is_its_best_or_final_or_newest_tag(checkpoint, tmp_path, monkeypatch):
    """And a copy of it works elsewhere: what is needed lies in it."""
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    monkeypatch.chdir(tmp_path)
    best = written(checkpoint / "best", "--prompt", "the")
    assert written(Path("copy"), "--prompt", "the") == best
    (copy / "best.config.json").rename(copy / "final.config.json")
    (copy / "best.safetensors").rename(copy / "final.safetensors")
    assert written(Path("copy/"), "--prompt", "the") == best
    shutil.copytree(checkpoint / "tokenizer", copy / "final.tokenizer")
    (copy / "tokenizer/char_tokenizer.json").write_text("{")  # the tag's own goes before it
    assert written(copy, "--prompt", "the") == best
    shutil.rmtree(copy / "final.tokenizer")
    damaged = llm_run(copy, "--prompt", "the")
    assert (damaged.exit_code, "char_tokenizer.json" in damaged.stderr) == (2, True)
    assert "--tokenizer PATH" in damaged.stderr
    empty = llm_run(tmp_path, "--prompt", "the")
    assert (empty.exit_code, "holds no checkpoint" in empty.stderr) == (2, True)
