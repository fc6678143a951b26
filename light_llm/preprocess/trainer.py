"""A BPE, trained in another process.

The library's trainer holds Python's lock and handles no signal until it ends, which can take
minutes. So it works in a process of its own, this module run as a program: it reads pickled texts
on its standard input and answers with the tokenizer.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from light_llm.errors import UserError

if TYPE_CHECKING:
    from light_llm.tokenizer import SubwordTokenizer

DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG, of Linux


class BpeTrainer:
    """Takes texts, and then trains a BPE on them. A context manager, which ends the process."""

    def __init__(self, vocab_size: int, min_frequency: int) -> None:
        command = [sys.executable, "-P", "-m", __name__, str(vocab_size), str(min_frequency)]
        pipe = subprocess.PIPE
        # its own group: Ctrl-C is for the parent
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, process_group=0)

    def __enter__(self) -> BpeTrainer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # a dead process did not read its input
                pipe.close()
        self._process.wait()

    def add(self, text: str | None) -> None:
        """Give it a text; None is the end of the texts.

        Raises:
            UserError: the process ended.
        """
        assert self._process.stdin is not None
        try:
            pickle.dump(text, self._process.stdin, protocol=5)
        except OSError:
            raise self._ended() from None

    def train(self) -> tuple[SubwordTokenizer, int]:
        """The tokenizer, and how many words were cut because they were too long to train on.

        Raises:
            UserError: the process ended.
        """
        from light_llm.tokenizer.kinds import trained_bpe

        self.add(None)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.flush()
            backend, cut = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):  # the last: half an answer
            raise self._ended() from None
        return trained_bpe(backend), cut

    def _ended(self) -> UserError:
        code = self._process.wait()
        return UserError(
            f"the process that trains the tokenizer ended with exit code {code}; if memory is "
            "short, fewer --train-characters need less"
        )


def serve(vocab_size: int, min_frequency: int, questions: BinaryIO, answers: BinaryIO) -> None:
    from light_llm.tokenizer import train_bpe
    from light_llm.tokenizer.words import ShortWords

    short = ShortWords(_texts(questions))
    trained = train_bpe(short, vocab_size, min_frequency)
    pickle.dump((trained.backend, short.cut), answers, protocol=5)
    answers.flush()


def _texts(questions: BinaryIO) -> Iterator[str]:
    try:
        while (text := pickle.load(questions)) is not None:
            yield text
    except (EOFError, pickle.UnpicklingError):  # the parent is gone
        os._exit(1)


def _end_with_parent() -> None:
    """Have the system end this process when its parent is gone; only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


if __name__ == "__main__":
    _end_with_parent()
    with contextlib.suppress(BrokenPipeError):
        serve(int(sys.argv[1]), int(sys.argv[2]), sys.stdin.buffer, sys.stdout.buffer)
