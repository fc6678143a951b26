"""What a run prints on stderr besides its progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from light_llm.preprocess.skipped import EXAMPLES, Skipped
from light_llm.printing import tell


def notice(text: str) -> None:
    tell(f"note: {text}")


def counted(number: int, noun: str) -> str:
    """`1 file`, `1,000 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def are(number: int, noun: str) -> str:
    return f"{counted(number, noun)} {'is' if number == 1 else 'are'}"


def notice_links(links: Mapping[Any, Path]) -> None:
    """Print the links that lead out of the input, and their targets: they are read too."""
    if links:
        some = ", ".join(f"{path} -> {links[path]}" for path in list(links)[:EXAMPLES])
        more = ", …" if len(links) > EXAMPLES else ""
        link = "link" if len(links) == 1 else "links"
        notice(f"{are(len(links), 'file')} read through a {link} out of the input: {some}{more}")


def notice_skipped(parts: Iterable[Skipped], min_length: int) -> None:
    several = list(parts)
    binary = sum(part.binary for part in several)
    examples = [path for part in several for path in part.examples]
    empty = sum(part.empty for part in several)
    short = sum(part.short for part in several)
    duplicate = sum(part.duplicate for part in several)
    if binary:
        more = ", …" if binary > len(examples) else ""
        some = ", ".join(examples)
        kinds = Skipped(kinds=dict(sum((Counter(part.kinds) for part in several), Counter())))
        notice(
            f"{are(binary, 'file')} not UTF-8 text and skipped ({kinds.told_kinds()}): "
            f"{some}{more}{kinds.remedies()}"
        )
    if empty:
        notice(f"{are(empty, 'empty document')} skipped")
    if short:
        length = counted(min_length, "character")
        notice(f"{are(short, 'document')} shorter than {length} and skipped")
    if duplicate:
        notice(f"{are(duplicate, 'duplicate')} dropped: an earlier document has the same text")
