"""What a reading left out, and of which kinds it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from light_llm.files.remotefile import InputFile
from light_llm.preprocess.kinds import remedy
from light_llm.preprocess.opening import printable, size_of

EXAMPLES = 3
KINDS = 5


def check_number(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 2**63:
        raise ValueError(f"{number!r} must be a number from 0 on")
    return number


@dataclass
class Skipped:
    """What a reading left out; part of its place."""

    empty: int = 0
    short: int = 0
    duplicate: int = 0
    """Whose text an earlier document has, where --dedupe drops these."""
    binary: int = 0
    bytes: int = 0
    """Of the files that are not text."""
    kinds: dict[str, int] = field(default_factory=dict)
    """How many of them are what."""
    examples: list[str] = field(default_factory=list)
    """The first files that are not text, a few."""

    @classmethod
    def parse(cls, row: Any) -> Skipped:
        """From the JSON of a journal, which anybody may have written.

        Raises:
            ValueError: it is not a count of skipped documents.
        """
        skipped = cls(**row)
        counts = (skipped.empty, skipped.short, skipped.duplicate, skipped.binary, skipped.bytes)
        for number in (*counts, *skipped.kinds.values()):
            check_number(number)
        some = skipped.examples
        if not isinstance(some, list) or not all(isinstance(path, str) for path in some):
            raise ValueError("the examples must be paths")
        return skipped

    @classmethod
    def total(cls, several: Iterable[Skipped]) -> Skipped:
        """What several readings left out together."""
        whole = cls()
        for each in several:
            whole.empty += each.empty
            whole.short += each.short
            whole.duplicate += each.duplicate
            whole.binary += each.binary
            whole.bytes += each.bytes
            for kind, number in each.kinds.items():
                whole.kinds[kind] = whole.kinds.get(kind, 0) + number
            whole.examples = (whole.examples + each.examples)[:EXAMPLES]
        return whole

    def leave_out(self, path: InputFile, kind: str) -> None:
        """Count a file that is not text, but of `kind`."""
        self.binary += 1
        self.bytes += size_of(path)
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(printable(path))

    def told_kinds(self) -> str:
        """`12 PNG, 3 zip, 5 others`, the most frequent first."""
        ordered = sorted(self.kinds.items(), key=lambda item: (-item[1], item[0]))
        told = [f"{number:,} {kind}" for kind, number in ordered[:KINDS]]
        others = sum(number for _, number in ordered[KINDS:])
        return ", ".join(told + ([f"{others:,} others"] if others else []))

    def remedies(self) -> str:
        """How some of the kinds can be read all the same: `; Arrow: …`, or nothing."""
        return "".join(f"; {kind}: {remedy(kind)}" for kind in sorted(self.kinds) if remedy(kind))

    def takes(self, text: str, min_length: int) -> bool:
        """Whether a text is a document; counted if not."""
        if not text or text.isspace():
            self.empty += 1
        elif len(text) < min_length:
            self.short += 1
        else:
            return True
        return False
