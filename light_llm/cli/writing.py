"""What llm-run prints: one text as it is written, or several, each when it is complete."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from light_llm.cli.prompts import Prompt
from light_llm.errors import UserError
from light_llm.printing import shown, tell

if TYPE_CHECKING:
    from light_llm.cli.backends import Generate
    from light_llm.models.transformer import TransformerConfig
    from light_llm.sampling import Sampling
    from light_llm.tokenizer import Tokenizer


class Encoder:
    """Prompts to ids, each checked against the model."""

    def __init__(self, tokenizer: Tokenizer, cfg: TransformerConfig, sampling: Sampling) -> None:
        self.tokenizer, self.cfg, self.sampling = tokenizer, cfg, sampling

    def __call__(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        return [self._encode(prompt) for prompt in prompts]

    def _encode(self, prompt: Prompt) -> list[int]:
        from light_llm.sampling import check_prompts
        from light_llm.text import encode_prompt

        try:
            ids = encode_prompt(self.tokenizer, prompt.text)
            check_prompts(self.cfg, [ids], self.sampling)
        except UserError as error:
            raise UserError(f"{prompt.source}: {error}" if prompt.source else str(error)) from None
        return ids


class Writer:
    """Continues prompts and prints them with their continuations; what is noteworthy, on stderr."""

    def __init__(
        self, encode: Encoder, generate: Generate, batch_size: int, seq_len: object
    ) -> None:
        """`seq_len`: of the windows that the model was trained on, if that is known."""
        self._encode, self._generate, self._batch_size = encode, generate, batch_size
        self._tokenizer, self._sampling = encode.tokenizer, encode.sampling
        self._past_training = _PastTraining(seq_len)

    def __call__(self, prompts: Sequence[Prompt]) -> None:
        """
        Raises:
            UserError: a prompt that the model cannot continue; nothing is printed.
        """
        encoded = self._encode(prompts)
        if len(prompts) == 1:
            self.stream(prompts[0].text, encoded[0], [])
        else:
            with _interruptible() as check:
                self._write_all(prompts, encoded, check)

    @property
    def cfg(self) -> TransformerConfig:
        return self._encode.cfg

    @property
    def max_seq_len(self) -> int:
        return self.cfg.max_seq_len

    def encode(self, text: str) -> list[int]:
        """
        Raises:
            UserError: a text that the model cannot continue.
        """
        return self._encode([Prompt(text)])[0]

    def fits(self, text: str) -> bool:
        """Whether max_tokens have room behind the text, or if they are more, half of max_seq_len.

        Raises:
            UserError: the tokenizer sees no token in the text.
        """
        from light_llm.text import encode_prompt

        room = min(self._sampling.max_tokens, self.max_seq_len // 2)
        return len(encode_prompt(self._tokenizer, text)) + room <= self.max_seq_len

    def stream(self, show: str, ids: list[int], written: list[str]) -> None:
        """Print `show`, and what follows `ids` as it is written.

        Args:
            written: gets the pieces, so that it has those of a text that Ctrl-C ends, too.
        """
        with _interruptible() as check:
            self._stream(show, ids, check, written)

    def _stream(
        self, show: str, ids: list[int], check: Callable[[], None], written: list[str]
    ) -> None:
        from light_llm.text import decoded

        times = [time.perf_counter()]
        rows = self._generate([ids], self._sampling, self._tokenizer.eos_id)
        new = (id for row in rows for id in row if id is not None)
        _write(show)
        for piece in decoded(self._tokenizer, ids, _timed(new, times)):
            check()
            written.append(piece)
            _write(piece)
        typer.echo()
        self._tell_ends([(len(ids), len(times) - 1)])
        tell(_speed(times))

    def _write_all(
        self,
        prompts: Sequence[Prompt],
        encoded: Sequence[list[int]],
        check: Callable[[], None],
    ) -> None:
        """The texts in their order under headings, some prompts being continued at a time."""
        start = time.perf_counter()
        ends = []
        written = self._continuations(encoded, check)
        for n, (prompt, ids, new) in enumerate(zip(prompts, encoded, written, strict=True)):
            _write("\n" * (n > 0) + f"==> {n + 1} of {len(prompts)} <==\n")
            _write(prompt.text + self._text(ids, new) + "\n")
            ends.append((len(ids), len(new)))
        seconds, count = time.perf_counter() - start, sum(length for _, length in ends)
        self._tell_ends(ends)
        tell(
            f"{count} tokens after {len(prompts)} prompts in {seconds:.2f} s: "
            f"{count / seconds:.1f} tokens/s"
        )

    def _text(self, ids: Sequence[int], new: Sequence[int]) -> str:
        from light_llm.text import decoded

        return "".join(decoded(self._tokenizer, ids, new))

    def _continuations(
        self, encoded: Sequence[list[int]], check: Callable[[], None]
    ) -> Iterator[list[int]]:
        """The ids that continue each prompt, in order, as soon as it and those before are complete.

        A prompt's place in the whole list decides its draws, whatever the batch size.
        """
        for first in range(0, len(encoded), self._batch_size):
            batch = encoded[first : first + self._batch_size]
            new: list[list[int]] = [[] for _ in batch]
            given = 0
            rows = self._generate(batch, self._sampling, self._tokenizer.eos_id, first_row=first)
            for row in rows:
                check()
                for ids, id in zip(new, row, strict=True):
                    if id is not None:
                        ids.append(id)
                while given < len(row) and row[given] is None:
                    yield new[given]
                    given += 1
            yield from new[given:]

    def _tell_ends(self, ends: Sequence[tuple[int, int]]) -> None:
        """Notes on texts, each given as the lengths of its prompt and of what followed."""
        limit, most = self._encode.cfg.max_seq_len, self._sampling.max_tokens
        full = sum(count < most and length + count == limit for length, count in ends)
        if full:
            which = "" if len(ends) == 1 else f"{full} of {len(ends)} texts "
            tell(f"{which}stopped at the model's max_seq_len={limit}")
        self._past_training.check(max(length + count for length, count in ends))


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """Ctrl-C raises KeyboardInterrupt at once, and in the function given if that was caught.

    A framework's first calls run much code that catches whatever is raised.
    """
    asked = False

    def handle(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        raise KeyboardInterrupt

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class _PastTraining:
    """Warns once that a text is longer than the windows that the model was trained on."""

    seq_len: object

    def check(self, length: int) -> None:
        if isinstance(self.seq_len, int) and length > self.seq_len:  # another trainer's: unknown
            tell(
                f"the model was trained on windows of seq_len={self.seq_len} tokens; what it "
                "writes after that many may make less sense"
            )
            self.seq_len = None


def _write(text: str) -> None:
    """Write data unchanged into a file or a pipe; typer's echo would strip colours there."""
    sys.stdout.write(shown(text))
    sys.stdout.flush()


def _timed(ids: Iterator[int], times: list[float]) -> Iterator[int]:
    """The ids; the time is noted when each has been printed."""
    for id in ids:
        yield id
        times.append(time.perf_counter())


def _speed(times: Sequence[float]) -> str:
    """The speed, from the times of the start and of each token."""
    count = len(times) - 1
    if count < 2:
        return f"{count} token{'s' * (count != 1)} in {times[-1] - times[0]:.2f} s"
    rate = (count - 1) / (times[-1] - times[1])
    first = times[1] - times[0]
    return f"{count} tokens, the first after {first:.2f} s, then {rate:.1f} tokens/s"
