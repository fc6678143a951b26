"""Texts -> token ids, on all cores.

Threads do not scale: Python has one lock per process, and the tokenizer's threads share one cache
of words. So each worker is a separate process with its own tokenizer. It is this module run as a
program, which answers pickled lists of texts on its pipes until they end, and therefore never
outlives its parent, however that dies. It encodes by the library that its parent chose.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from light_llm.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from light_llm.preprocess.corpus import Chunk

# A working tokenizer holds hundreds of bytes per token: small batches stay in the CPU caches.
BATCH_TEXTS = 64
BATCH_CHARACTERS = 200_000
SPECIAL, FAST = "special", "fast"  # arguments of this program


class Encodes(Protocol):
    """What encodes: a `Tokenizer`, or a `FastTokenizer` in its place."""

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_id(self) -> int | None: ...

    def encode(self, text: str, add_special_tokens: bool = False) -> Sequence[int]: ...

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = False
    ) -> Sequence[Sequence[int] | np.ndarray]: ...


class Untokenizable(Exception):
    """A text that the tokenizer fails on. Arguments: its index, and the tokenizer's message."""


def untokenizable(chunk: Chunk, index: int, reason: str) -> UserError:
    source = chunk.documents[index].source
    return UserError(
        f"{source}: the tokenizer fails on this document: {reason}; leave it out, or take a "
        "tokenizer that has an id for everything"
    )


def encode(
    texts: Sequence[str], tokenizer: Encodes, add_special_tokens: bool = False
) -> list[np.ndarray]:
    """The int32 ids of each text: BOS first and EOS last, where the tokenizer has them.

    If one token is both (GPT-2's), it ends documents. A mark is not added where it already is, from
    the tokenizer's template (`add_special_tokens`) or from the text.

    Raises:
        Untokenizable: the tokenizer fails on one of them.
    """
    import numpy as np

    eos = tokenizer.eos_id
    bos = None if tokenizer.bos_id == eos else tokenizer.bos_id
    encoded: list[np.ndarray] = []
    for batch in batches(texts):
        try:
            batch_ids = tokenizer.encode_batch(batch, add_special_tokens)
        except Exception as error:  # the Rust side raises nothing narrower
            failing = _first_failing(batch, tokenizer, add_special_tokens)
            raise Untokenizable(len(encoded) + failing, str(error)) from error
        encoded += (_marked(np.asarray(ids, np.int32), bos, eos) for ids in batch_ids)
    return encoded


def _marked(ids: np.ndarray, bos: int | None, eos: int | None) -> np.ndarray:
    """The ids with the marks that are not there yet."""
    import numpy as np

    parts = [ids]
    if bos is not None and not (len(ids) and ids[0] == bos):
        parts.insert(0, np.array([bos], np.int32))
    if eos is not None and not (len(ids) and ids[-1] == eos):
        parts.append(np.array([eos], np.int32))
    return ids if len(parts) == 1 else np.concatenate(parts)


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
    """A pool of worker processes that encode chunks. A context manager.

    Args:
        folder: where the tokenizer is saved.
        workers: how many processes.
        add_special_tokens: as for `encode`.
        fast: whether gigatoken encodes what it can, which `proven` must have allowed.
    """

    def __init__(
        self, folder: Path, workers: int, add_special_tokens: bool = False, fast: bool = False
    ):
        self._threads = ThreadPoolExecutor(workers)
        self._command = [sys.executable, "-P", "-m", __name__, os.fspath(folder)]
        self._command += [SPECIAL] if add_special_tokens else []
        self._command += [FAST] if fast else []
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
        self._threads.shutdown(cancel_futures=True)
        for worker in self._all:
            for pipe in (worker.stdin, worker.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):  # a dead worker did not read its input
                    pipe.close()
            worker.wait()

    def encode(self, chunks: Iterator[Chunk]) -> Iterator[tuple[Chunk, list[np.ndarray]]]:
        """Each chunk with the ids of its documents, in order; a few are read ahead."""
        running: deque[tuple[Chunk, Future[list[np.ndarray]]]] = deque()
        for chunk in chunks:
            running.append((chunk, self._threads.submit(self._ask, chunk)))
            if len(running) > self._workers + 1:
                done, future = running.popleft()
                yield done, future.result()
        for done, future in running:
            yield done, future.result()

    def _ask(self, chunk: Chunk) -> list[np.ndarray]:
        import numpy as np

        worker = self._idle.popleft()  # there are as many threads as workers
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            pickle.dump([document.text for document in chunk.documents], worker.stdin, protocol=5)
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
            raise untokenizable(chunk, *values)
        return np.split(np.frombuffer(values, np.int32), np.cumsum(lengths)[:-1])


def serve(tokenizer: Encodes, special: bool, questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer pickled lists of texts until the end: with their lengths in tokens and all ids, or
    with None and which text fails and why."""
    import numpy as np

    while True:
        try:
            texts: list[str] = pickle.load(questions)
        except EOFError:
            return
        answer: tuple[list[int] | None, object]
        try:
            encoded = encode(texts, tokenizer, special)
            answer = [len(ids) for ids in encoded], np.concatenate(encoded).tobytes()
        except Untokenizable as error:
            answer = None, error.args
        pickle.dump(answer, answers, protocol=5)
        answers.flush()


if __name__ == "__main__":
    from light_llm.tokenizer import SubwordTokenizer, load_tokenizer

    with contextlib.suppress(BrokenPipeError):
        loaded: Encodes = load_tokenizer(sys.argv[1], fetch=False)
        if FAST in sys.argv[2:]:
            from light_llm.preprocess.engine import FastTokenizer

            assert isinstance(loaded, SubwordTokenizer)
            loaded = FastTokenizer(loaded)
        serve(loaded, SPECIAL in sys.argv[2:], sys.stdin.buffer, sys.stdout.buffer)
