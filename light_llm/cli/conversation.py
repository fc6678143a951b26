"""llm-run --interactive: each line that is typed is continued after all that stands before it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from light_llm.cli.prompts import Prompt
from light_llm.errors import UserError
from light_llm.printing import tell

if TYPE_CHECKING:
    from light_llm.checkpoint.reading import Checkpoint
    from light_llm.cli.writing import Writer

RESET = "/reset"
HELP = (
    "Each line that you type is continued, after all that stands before it.",
    f"{RESET} forgets what stands before; Ctrl-C ends an answer, Ctrl-D the conversation.",
)


def converse(write: Writer, prompts: Sequence[Prompt], banner: Sequence[str]) -> None:
    """Continue `prompts`, then each line of standard input.

    A single prompt is the first line of the conversation; several are texts for themselves. Ctrl-C
    ends a continuation; between continuations it ends the run.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() then knows the arrow keys)
    # from a pipe the bytes of a line are kept: a carriage return ends none
    sys.stdin.reconfigure(errors="surrogateescape", newline="\n")  # type: ignore[union-attr]
    typed = sys.stdin.isatty()
    for line in banner if typed else ():
        tell(line)
    conversation = _Conversation(write)
    for prompt in prompts[:1] if len(prompts) == 1 else ():
        conversation.add(prompt.text, show=prompt.text)
    if len(prompts) > 1:
        write(prompts)
    echoed = typed and sys.stdout.isatty()  # what is typed stands there already
    while True:
        try:
            line = input("> " if typed else "").removesuffix("\r")
        except EOFError:
            typer.echo()
            return
        if line.strip() == RESET:
            conversation.reset()
        elif line:
            conversation.add(line, show="" if echoed else line)


class _Conversation:
    """What was typed and written so far: texts, each a line that was typed and what followed it."""

    def __init__(self, write: Writer) -> None:
        self._write = write
        self._turns: list[str] = []

    def reset(self) -> None:
        self._turns = []
        tell("what stands before is forgotten")

    def add(self, line: str, show: str) -> None:
        """Print `show` and what follows the turns so far and `line`; a refusal is told."""
        written: list[str] = []
        try:
            turns = self._that_fit(line)
            ids = self._write.encode("\n".join([*turns, line]))
            if len(turns) < len(self._turns):
                tell(
                    f"the oldest {len(self._turns) - len(turns)} of {len(self._turns)} turns are "
                    f"forgotten, since max_seq_len={self._write.max_seq_len} has no room for them"
                )
            self._turns = turns
            self._write.stream(show, ids, written)
        except UserError as error:
            tell(f"llm-run: {error}")
            if not written:
                return
        except KeyboardInterrupt:
            typer.echo()
        self._turns = [*self._turns, line + "".join(written)]

    def _that_fit(self, line: str) -> list[str]:
        """The newest turns that leave room for `line` and an answer."""
        turns = self._turns
        while turns and not self._write.fits("\n".join([*turns, line])):
            turns = turns[1:]
        return turns


def banner(checkpoint: Checkpoint, write: Writer, backend: str, dtype: str) -> list[str]:
    """What a person reads before the first line."""
    import math

    from conversion.mapping import table

    cfg = write.cfg
    number = sum(math.prod(entry.shape) for entry in table(cfg))
    step = "" if checkpoint.step is None else f", step {checkpoint.step:,}"
    layers = f"{cfg.num_layers} layer{'' if cfg.num_layers == 1 else 's'}"
    return [
        f"checkpoint  {checkpoint.files.prefix}{step}",
        f"model       {number:,} parameters, {layers}, max_seq_len {cfg.max_seq_len:,}; "
        f"{backend}, {dtype}",
        *HELP,
    ]
