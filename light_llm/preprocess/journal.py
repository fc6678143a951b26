"""The memory of a run: what it was asked, and after each of its steps, what is on disk and where it
stands. A line of JSON each; a line counts once it is flushed, and what it names was flushed before.

A line is the unit of commit, because it says two things that must be true together: these shards
are complete, and the input goes on from this position. Were they two files, a crash between them
would lose documents or write them twice. A line is there with its line break or it does not count.
A shard without a line is deleted: its documents lie behind the last position and are read again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from light_llm.errors import UserError
from light_llm.files import given
from light_llm.files.disk import sync, write_atomically
from light_llm.preprocess.corpus import Position, Skipped
from light_llm.preprocess.shards import Shard
from light_llm.preprocess.split import Split


@dataclass
class Part:
    """How far one corpus is: `split` once it is known, the committed shards, what comes next."""

    split: Split | None = None
    position: Position = field(default_factory=Position)
    shards: list[Shard] = field(default_factory=list)
    done: bool = False
    skipped: dict[str, Any] = field(default_factory=dict)


def under(folder: str, shards: Iterable[Shard]) -> list[Shard]:
    """Those that are in `folder`."""
    return [shard for shard in shards if shard.file.rpartition("/")[0] == folder]


class Damaged(UserError):
    """What a stopped run left is not what it noted."""


class Journal:
    """Reads what a former run left, if anything, and takes notes for the next.

    Args:
        check: called before each note; raises if the folder is no longer ours.

    Raises:
        Damaged: a whole line of it is none that a run wrote.
    """

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None):
        self.path = path
        self.check = check
        self.asked: dict[str, Any] | None = None
        """What the run was asked for; None: nothing is noted yet."""
        self.tokenizer: str | None = None
        """Its fingerprint, once it is saved."""
        self.parts: dict[str, Part] = {}
        for number, line in enumerate(_whole_lines(path), start=1):
            try:
                self._apply(given.parse_json(line, f"line {number}"))
            except (UserError, ValueError, TypeError, KeyError, AttributeError) as error:
                raise Damaged(
                    f"{path}:{number}: is not a line that a run wrote ({error!r}), so the run that "
                    "was stopped cannot be continued; begin anew with --overwrite"
                ) from None

    def part(self, name: str) -> Part:
        return self.parts.setdefault(name, Part())

    @property
    def shards(self) -> list[Shard]:
        return [shard for part in self.parts.values() for shard in part.shards]

    def ask(self, asked: dict[str, Any]) -> None:
        self._note({"asked": asked})

    def save_tokenizer(self, fingerprint: str) -> None:
        self._note({"tokenizer": fingerprint})

    def begin(self, name: str, split: Split) -> None:
        self._note({"part": name, "split": asdict(split)})

    def commit(self, name: str, shards: list[Shard], position: Position) -> None:
        """`shards` are on disk; the documents from `position` on are in none."""
        rows = [asdict(shard) for shard in shards]
        self._note({"part": name, "shards": rows, "position": asdict(position)})

    def finish(self, name: str, shards: list[Shard], skipped: dict[str, Any]) -> None:
        """As `commit`, with the last."""
        rows = [asdict(shard) for shard in shards]
        self._note({"part": name, "shards": rows, "done": True, "skipped": skipped})

    def _note(self, line: dict[str, Any]) -> None:
        self.check()
        new = not self.path.exists()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        with os.fdopen(os.open(self.path, flags, 0o666), "w", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync(self.path.parent)
        self._apply(line)

    def _apply(self, line: dict[str, Any]) -> None:
        if "asked" in line:
            if not isinstance(line["asked"], dict):
                raise ValueError("what was asked is no object")
            self.asked = line["asked"]
        elif "tokenizer" in line:
            self.tokenizer = line["tokenizer"]
        else:
            name = line["part"]
            part = self.part(name)
            if "split" in line:
                part.split = Split.parse(line["split"])
            if "position" in line:
                part.position = Position.parse(line["position"])
            shards = [Shard.parse(row) for row in line.get("shards", ())]
            sides = {f"{name}/{side}".lstrip("/") for side in ("train", "val")}
            if any(shard.file.rpartition("/")[0] not in sides for shard in shards):
                raise ValueError(f"a shard of another part than {name!r}")
            part.shards += shards
            part.done = part.done or "done" in line
            if "skipped" in line:
                part.skipped = asdict(Skipped.parse(line["skipped"]))


def _whole_lines(path: Path) -> list[bytes]:
    """The lines of the file, which is cut behind the last that was written whole.

    It is written anew for that, and where it has a second name: what is under that stays.
    """
    if not path.exists():
        return []
    content = given.read_bytes(path, given.LARGE, "the journal")
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content) or path.stat().st_nlink > 1:
        write_atomically(path, whole)
    return whole.splitlines()
