"""Texts -> token ids, on all cores.

gigatoken has threads of its own, which work while Python does something else. Those of `tokenizers`
do not scale: they share one cache of words. So for it each worker is a separate process with its
own tokenizer. It is this module run as a program, which answers pickled lists of texts on its pipes
until they end, and therefore never outlives its parent, however that dies.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import BinaryIO, TypeAlias

from light_llm.errors import UserError
from light_llm.preprocess.engine import FastTokenizer
from light_llm.preprocess.ids import Ids, joined, marked, of_rows
from light_llm.tokenizer import Tokenizer

# A working tokenizer holds hundreds of bytes per token: small batches stay in the CPU caches.
BATCH_TEXTS = 64
BATCH_CHARACTERS = 200_000
SPECIAL = "special"  # the argument of this program


Encodes: TypeAlias = Tokenizer | FastTokenizer
"""What encodes."""


class Untokenizable(Exception):
    """A text that the tokenizer fails on. Arguments: its index, and the tokenizer's message."""


def encode(
    texts: Sequence[str],
    tokenizer: Encodes,
    add_special_tokens: bool = False,
    stop: threading.Event | None = None,
) -> Ids:
    """The ids of each text: BOS first and EOS last, where the tokenizer has them.

    If one token is both (GPT-2's), it ends documents. A mark is not added where it already is, from
    the tokenizer's template (`add_special_tokens`) or from the text.

    Args:
        stop: once it is set, nobody wants the ids.

    Raises:
        CancelledError: `stop` is set.
        Untokenizable: the tokenizer fails on one of them.
    """
    eos = tokenizer.eos_id
    bos = None if tokenizer.bos_id == eos else tokenizer.bos_id
    encoded: list[Ids] = []
    for batch in [texts] if isinstance(tokenizer, FastTokenizer) else batches(texts):
        if stop is not None and stop.is_set():
            raise CancelledError
        try:
            if isinstance(tokenizer, FastTokenizer):
                encoded.append(tokenizer.encode_all(batch, add_special_tokens))
            else:
                encoded.append(of_rows(tokenizer.encode_batch(batch, add_special_tokens)))
        except Exception as error:  # the Rust side raises nothing narrower
            failing = _first_failing(batch, tokenizer, add_special_tokens)
            raise Untokenizable(sum(map(len, encoded)) + failing, str(error)) from error
    return marked(joined(encoded), bos, eos)


def _first_failing(batch: Sequence[str], tokenizer: Encodes, special: bool) -> int:
    for index, text in enumerate(batch):
        try:
            tokenizer.encode(text, special)
        except Exception:  # as in `encode`
            return index
    return 0  # none fails alone


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in lists that are small enough to be encoded together."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) >= BATCH_TEXTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class Encoders:
    """A pool of worker processes that encode by `tokenizers`. A context manager.

    Args:
        folder: where the tokenizer is saved.
        workers: how many processes.
        add_special_tokens: as for `encode`.
    """

    def __init__(self, folder: Path, workers: int, add_special_tokens: bool = False):
        self._command = [sys.executable, "-P", "-m", __name__, os.fspath(folder)]
        self._command += [SPECIAL] if add_special_tokens else []
        self._idle: deque[subprocess.Popen[bytes]] = deque()
        self._all: list[subprocess.Popen[bytes]] = []
        self._workers = workers

    def __enter__(self) -> Encoders:
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
        for number in range(self._workers):
            try:
                worker = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment,
                    process_group=0,  # Ctrl-C is for the parent
                )
            except OSError as error:
                self.__exit__()
                raise UserError(
                    f"--workers {self._workers}: process {number + 1} cannot be started "
                    f"({error.strerror}); use fewer"
                ) from error
            self._all.append(worker)
            self._idle.append(worker)
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._all:
            worker.kill()
        for worker in self._all:
            for pipe in (worker.stdin, worker.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):  # a dead worker did not read its input
                    pipe.close()
            worker.wait()

    def encode(self, texts: Sequence[str]) -> Ids:
        """As the function `encode`; to be called from as many threads as there are workers.

        Raises:
            Untokenizable: the tokenizer fails on one of the texts.
            UserError: a worker ended.
        """
        import numpy as np

        if not self._idle:
            raise UserError("a tokenizing process ended before; start again with fewer --workers")
        worker = self._idle.popleft()
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            pickle.dump(texts, worker.stdin, protocol=5)
            worker.stdin.flush()
            lengths, values = pickle.load(worker.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:  # the last: half an answer
            code = worker.wait()
            raise UserError(
                f"a tokenizing process ended with exit code {code}; if memory is short, fewer "
                "--workers need less"
            ) from error
        self._idle.append(worker)
        if lengths is None:
            raise Untokenizable(*values)
        return Ids(np.frombuffer(values, np.int32), np.frombuffer(lengths, np.int64))


def serve(tokenizer: Encodes, special: bool, questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer pickled lists of texts until the end: with their lengths in tokens and all ids, or
    with None and which text fails and why."""
    while True:
        try:
            texts: list[str] = pickle.load(questions)
        except EOFError:
            return
        answer: tuple[bytes | None, object]
        try:
            ids = encode(texts, tokenizer, special)
            answer = ids.lengths.tobytes(), ids.values.tobytes()
        except Untokenizable as error:
            answer = None, error.args
        pickle.dump(answer, answers, protocol=5)
        answers.flush()


if __name__ == "__main__":
    from light_llm.tokenizer import load_tokenizer

    with contextlib.suppress(BrokenPipeError):
        loaded = load_tokenizer(sys.argv[1], fetch=False)
        serve(loaded, SPECIAL in sys.argv[2:], sys.stdin.buffer, sys.stdout.buffer)
