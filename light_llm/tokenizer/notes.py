"""What the loading of a tokenizer says on stderr: each thing once in a process."""

from __future__ import annotations

import contextlib
import functools

from light_llm.printing import tell


@functools.cache  # a run loads its tokenizer in several places
def note(text: str) -> None:
    with contextlib.suppress(OSError):  # a lost log must not end a training
        tell(f"note: {text}")
