"""Printing: a terminal shows names and texts from files, and never obeys them."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from typing import IO, TextIO

# C0 and C1 controls but newline and tab, DEL, marks that reorder a line, half surrogates.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
    "\ud800-\udfff]"
)
LONGEST = 20_000
"""Characters of a message: a text from a file must not flood a terminal or a log."""


def printable(text: str) -> str:
    """`text` with control characters spelt out: ESC becomes `\\x1b`."""
    return _UNSEEN.sub(_spelt, text)


def message(text: str) -> str:
    """`text` as a message: printable, and cut in the middle where it is very long."""
    if len(text) > LONGEST:
        left_out = len(text) - LONGEST
        text = f"{text[: LONGEST // 2]}\n… {left_out:,} characters …\n{text[-LONGEST // 2 :]}"
    return printable(text)


def say(text: str = "") -> None:
    """Print a line of a command's output, which may contain names from files."""
    print(printable(text))


def tell(text: str, stream: TextIO | None = None) -> None:
    """Print a message, a warning or a note on standard error; a terminal gets it between words.

    Args:
        stream: where to print instead.
    """
    text, stream = message(text), stream or sys.stderr
    if stream is not None and stream.isatty():
        text = wrapped(text, columns(stream))
    print(text, file=stream, flush=True)


def tell_last(text: str) -> None:
    """`tell`, behind which file descriptor 2 shows nothing more, which libraries in C++ write to.
    For a process that is about to end."""
    kept = None
    with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr is no file, or closed
        if sys.stderr.fileno() == 2:
            sys.stderr.flush()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            shown = open(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
            os.dup2(nowhere, 2)
            kept = shown
    tell(text, kept)


def columns(terminal: IO[str]) -> int:
    """Columns that a line may have without wrapping; a terminal that does not tell has 80."""
    try:
        width = os.get_terminal_size(terminal.fileno()).columns
    except (OSError, ValueError):
        width = 0
    return max(20, (width or 80) - 1)


def wrapped(text: str, width: int) -> str:
    """`text` with line breaks between words. What follows stands below the text after the label
    (`model       25.2 M …`), if the line has one; a word that is too long stays whole."""
    return "\n".join(_wrapped_line(line, width) for line in text.split("\n"))


def _wrapped_line(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    label = re.match(r" *\S+( \S+)? {2,}", line)
    indent = len(label[0]) if label is not None and len(label[0]) <= width // 3 else 2
    return "\n".join(
        textwrap.wrap(
            line,
            width,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
            expand_tabs=False,
            replace_whitespace=False,
        )
    )


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show `text` on a terminal for as long as the block lasts; elsewhere nothing is said.

    Nothing in the block prints. A signal may end it: nothing is done that must be undone.
    """
    on_terminal = sys.stderr is not None and sys.stderr.isatty()

    def draw(what: str) -> None:
        if on_terminal:
            with contextlib.suppress(OSError):
                print(what, end="", file=sys.stderr, flush=True)

    draw(text)
    try:
        yield
    finally:
        draw("\r\x1b[K")


def shown(text: str, stream: TextIO | None = None) -> str:
    """Text that is data: unchanged, but printable if `stream` is a terminal."""
    stream = sys.stdout if stream is None else stream
    return printable(text) if stream.isatty() else text


def pass_bytes(stream: TextIO) -> None:
    """Let bytes that are not UTF-8, which Python holds as half surrogates, leave as they came.

    What else the stream's encoding cannot express becomes `?`.
    """
    codecs.register_error(_PASS_BYTES, _byte_or_question_mark)
    stream.reconfigure(errors=_PASS_BYTES)  # type: ignore[attr-defined]


_PASS_BYTES = "light-llm-pass-bytes"


def _byte_or_question_mark(error: UnicodeError) -> tuple[bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    codes = map(ord, error.object[error.start : error.end])
    held = (code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else ord("?") for code in codes)
    return bytes(held), error.end


def _spelt(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
