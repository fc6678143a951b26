"""llm-run as a user runs it, on a checkpoint on disk."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from in_process import Ended, call
from run_cases import TEXT, save_checkpoint
from torch_cases import lively, tiny

from light_llm.cli import writing
from light_llm.cli.run import main
from light_llm.generate import generate
from light_llm.sampling import Sampling
from light_llm.tokenizer import load_tokenizer, train_bpe

SCRIPT = shutil.which("llm-run", path=Path(sys.executable).parent)


def console_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What a user sees; seconds, since torch is imported."""
    assert SCRIPT is not None
    command = [SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)


def llm_run(*arguments: object, input: str = "") -> Ended:
    """The same command line in this process."""
    return call(main, *arguments, input=input)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("run"), model={"vocab_size": 40})


def refused(*arguments: object) -> str:
    """The message of a run that is refused."""
    done = llm_run(*arguments)
    assert (done.exit_code, done.stdout) == (2, ""), done
    assert done.stderr.startswith("llm-run: ")
    return done.stderr


def test_the_prompt_and_its_continuation_are_printed(checkpoint):
    flags = ("--prompt", "the cat", "--max-tokens", 20, "--seed", 3, "--device", "cpu")
    done = console_script("--checkpoint", checkpoint, *flags)
    assert done.returncode == 0, done.stderr

    tokenizer = load_tokenizer(checkpoint.parent / "tokenizer")
    model = lively(tiny(vocab_size=40))
    prompt_ids = tokenizer.encode("the cat")
    ids = list(generate(model, prompt_ids, Sampling(20, temperature=0.8, seed=3), eos_id=1))
    assert done.stdout == "the cat" + tokenizer.decode(ids) + "\n"
    speed = rf"{len(ids)} tokens, the first after \d+\.\d\d s, then \d+\.\d tokens/s\n"
    assert re.fullmatch(speed, done.stderr)
    for ending in (".safetensors", ".config.json"):
        assert llm_run("--checkpoint", f"{checkpoint}{ending}", *flags).stdout == done.stdout


def test_bfloat16_and_every_sampling_flag(checkpoint):
    flags = "--top-k 9 --top-p 0.9 --repetition-penalty 1.2 --temperature 0.5 --dtype bfloat16"
    done = llm_run("--checkpoint", checkpoint, "--prompt", "the", *flags.split(), "--max-tokens", 4)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("the")


def test_jax_writes_the_same_text(checkpoint):
    flags = ("--checkpoint", checkpoint, "--prompt", "the cat", "--top-k", 9, "--seed", 3)
    in_torch, in_jax = (llm_run(*flags, "--backend", name) for name in ("torch", "jax"))
    assert in_jax.exit_code == 0, in_jax.stderr
    assert in_jax.stdout == in_torch.stdout
    assert "tokens/s" in in_jax.stderr


def test_it_stops_at_max_seq_len_and_says_so(tmp_path):
    prefix = save_checkpoint(tmp_path, model={"vocab_size": 40, "max_seq_len": 12})
    done = llm_run("--checkpoint", prefix, "--prompt", "the cat", "--temperature", 0)
    assert done.exit_code == 0, done.stderr
    assert "stopped at the model's max_seq_len=12\n5 tokens" in done.stderr


def test_a_bpe_tokenizer_given_by_flag(checkpoint, tmp_path):
    bpe = train_bpe([TEXT * 20], 300)
    bpe.save(tmp_path / "bpe")
    prefix = save_checkpoint(
        tmp_path, model={"vocab_size": bpe.vocab_size}, tokenizer_path="/moved/away/tokenizer"
    )
    assert "--tokenizer PATH" in refused("--checkpoint", prefix, "--prompt", "größer 🙂")
    flags = ("--prompt", "größer 🙂", "--tokenizer", tmp_path / "bpe", "--max-tokens", 30)
    done = llm_run("--checkpoint", prefix, *flags)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("größer 🙂")


def test_what_the_user_can_fix_is_one_message(checkpoint, tmp_path):
    def message(*flags: object, prefix: Path = checkpoint, prompt: str = "the") -> str:
        return refused("--checkpoint", prefix, "--prompt", prompt, *flags)

    assert "has best" in message(prefix=checkpoint.with_name("worst"))
    assert "there is no folder" in message(prefix=tmp_path / "none" / "best")
    assert "--device='tpu' must be cpu, cuda, mps" in message("--device", "tpu")
    assert "must be cpu, cuda, mps" in message("--device", "cpu:99999999999")
    assert "not available to PyTorch" in message("--device", "cpu:5")
    assert "File name too long" in message(prefix=checkpoint.with_name("x" * 300))
    assert "--tokenizer is empty" in message("--tokenizer", "")
    assert "must be cpu, cuda, tpu" in message("--device", "mps", "--backend", "jax")
    assert "not available to JAX here; use cpu" in message("--device", "tpu", "--backend", "jax")
    assert "--backend='tf' must be torch or jax" in message("--backend", "tf")
    assert "--dtype='float8' must be float32, bfloat16" in message("--dtype", "float8")
    assert "give --prompt TEXT, --prompts-file" in refused("--checkpoint", checkpoint)
    assert "--batch-size=0 must be 1 or more" in message("--batch-size", 0)
    two = message("--prompt", "the" * 17)
    assert "llm-run: --prompt number 2: the prompt's 51 tokens" in two
    both = message("--top-p", 2, "--top-k", 0)
    assert "top_k=0 must be" in both
    assert "top_p=2.0 must be" in both
    assert "51 tokens leave no room in the model's max_seq_len=48" in message(prompt="the" * 17)
    if not torch.cuda.is_available():
        assert "--device='cuda' is not available" in message("--device", "cuda")

    small = save_checkpoint(tmp_path, model={"vocab_size": 7})
    assert "tokens, more than the model's vocab_size=7" in message(prefix=small)
    unknown = save_checkpoint(tmp_path / "unknown", model={}, tokenizer_path=None)
    assert "tokenizer_path is not set" in message(prefix=unknown)


WATCHED = """
import contextlib, io, sys
import jax
from light_llm.cli import run
from light_llm.cli.run import main

class Watched(io.TextIOWrapper):
    def write(self, text):
        caches = [x for x in jax.live_arrays() if x.ndim == 4]
        devices.update(device.id for x in caches for device in x.devices())
        return super().write(text)

devices = set()
jax.config.update("jax_num_cpu_devices", 3)
sys.stdout = Watched(io.BytesIO(), encoding="utf-8")
with contextlib.suppress(SystemExit):
    main()
print(devices, file=sys.__stdout__)
"""


def test_jax_computes_on_the_device_that_was_asked_for(checkpoint):
    flags = ["--checkpoint", checkpoint, "--prompt", "the", "--max-tokens", "4"]
    flags += ["--seed", "0", "--backend", "jax", "--device", "cpu:2"]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *flags], capture_output=True, text=True, check=True
    )
    assert done.stdout == "{2}\n"


def test_the_console_script_exits_with_2_and_without_a_traceback(tmp_path):
    done = console_script("--checkpoint", tmp_path / "best", "--prompt", "the")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"llm-run: .*/best: there is no checkpoint 'best' .*\n", done.stderr)


def test_usage_errors_exit_with_2():
    assert llm_run("--prompt", "the").exit_code == 2
    assert llm_run("--checkpoint", "x", "--prompt", "the", "--top-k", "many").exit_code == 2


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A checkpoint whose tokenizer has no end of text, so that it writes until it is stopped."""
    folder = tmp_path_factory.mktemp("endless")
    bpe = train_bpe([TEXT * 20], 300)
    bpe.save(folder)
    config = {"eos_token": None, "bos_token": None}  # else the usual name is taken
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    model = {"vocab_size": bpe.vocab_size, "max_seq_len": 10**6}
    return save_checkpoint(folder, model=model, tokenizer_path=str(folder))


def test_ctrl_c_exits_with_130(endless):
    assert SCRIPT is not None
    running = subprocess.Popen(
        [SCRIPT, "--checkpoint", endless, "--prompt", "the cat", "--max-tokens", "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdout is not None
    assert running.stdout.read(10)[:7] == b"the cat"  # so the continuation streams, too
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=30)
    assert running.returncode == 130
    assert errors == b""


def test_a_conversation_in_a_terminal(endless):
    """Ctrl-C ends what is being written, not the conversation; Ctrl-D ends that."""
    assert SCRIPT is not None
    ours, theirs = pty.openpty()
    flags = ("--interactive", "--seed", "1", "--max-tokens", "1000000")
    login = (  # the terminal is the process's own, so that its Ctrl-C is a signal
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", login, SCRIPT, "--checkpoint", endless, *flags],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)

    text = b""

    def read_until(wanted: bytes) -> bytes:
        """What comes up to `wanted`, or the next piece."""
        nonlocal text
        while wanted not in text or not text:
            ready, _, _ = select.select([ours], [], [], 60)
            assert ready, text
            text += os.read(ours, 4096)
        before, _, text = text.partition(wanted) if wanted else (text, b"", b"")
        return before

    banner = read_until(b"conversation.").decode()
    assert re.search(r"checkpoint  \S+/best\r\nmodel {7}[\d,]+ parameters, 2 layers, ", banner)
    assert "/reset forgets" in banner
    for prompt in (b"the cat", b"the dog"):
        read_until(b"> ")
        os.write(ours, prompt + b"\n")
        read_until(prompt + b"\r\n")  # the terminal's echo
        answer = read_until(b"")
        assert not answer.startswith(prompt[:3])
        os.write(ours, b"\x03")
    read_until(b"> ")
    os.write(ours, b"\x04")
    assert running.wait(30) == 0
    os.close(ours)


def test_ctrl_c_that_a_library_caught_ends_the_text_all_the_same():
    before = signal.getsignal(signal.SIGINT)
    with writing._interruptible() as check:
        check()
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) == before


def test_help_is_quick_to_import():
    code = "import sys, light_llm.cli.run; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "jax", "transformers"} & set(done.stdout.split())
