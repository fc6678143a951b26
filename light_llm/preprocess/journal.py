"""The journal of a run: its options and, after each step, what is on disk and where it is in its
input. Each is a line of JSON, which counts once it is flushed; what it names was flushed before.

A line is the unit of commit, because it says two things that must be true together: these shards
are complete, and the input continues from this position. With two files, a crash between them would
lose documents or write them twice. A line without its line break does not count. A shard without a
line is deleted: its documents come after the last position and are read again.
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
from light_llm.preprocess.copies import Found
from light_llm.preprocess.shards import Shard
from light_llm.preprocess.skipped import Skipped
from light_llm.preprocess.split import Split
from light_llm.preprocess.stage import HASHES, Damaged
from light_llm.preprocess.stream import Position
from light_llm.preprocess.texthashes import HashFile


@dataclass
class Part:
    """The progress of one corpus: its split once known, the committed shards, the next position."""

    split: Split | None = None
    position: Position = field(default_factory=Position)
    shards: list[Shard] = field(default_factory=list)
    done: bool = False
    skipped: dict[str, Any] = field(default_factory=dict)
    hashes: list[HashFile] = field(default_factory=list)
    """Of the texts in the shards, a file for each commit."""
    unhashed: list[Shard] = field(default_factory=list)
    """Shards that an earlier version committed, which kept no hashes."""
    engines: list[str] = field(default_factory=list)
    """The libraries that encoded it, with their versions. The shards do not depend on them."""


def under(folder: str, shards: Iterable[Shard]) -> list[Shard]:
    """The shards in `folder`."""
    return [shard for shard in shards if shard.file.rpartition("/")[0] == folder]


class Journal:
    """Reads the lines of a previous run, if any, and writes lines for the next.

    Args:
        check: called before each line; raises if the folder is no longer ours.

    Raises:
        Damaged: a complete line is not one that a run wrote.
    """

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None):
        self.path = path
        self.check = check
        self.asked: dict[str, Any] | None = None
        """What the run was asked for; None: the journal is empty."""
        self.tokenizer: str | None = None
        """Its fingerprint, once it is saved."""
        self.copies: Found | None = None
        """What --dedupe drops, once it is listed."""
        self.parts: dict[str, Part] = {}
        for number, line in enumerate(_whole_lines(path), start=1):
            try:
                self._apply(given.parse_json(line, f"line {number}"))
            except (UserError, ValueError, TypeError, KeyError, AttributeError) as error:
                raise Damaged(
                    f"{path}:{number}: is not a line that a run wrote ({error!r}), so the stopped "
                    "run cannot be continued; begin again with --overwrite"
                ) from None

    def part(self, name: str) -> Part:
        return self.parts.setdefault(name, Part())

    @property
    def engines(self) -> list[str]:
        return sorted({engine for part in self.parts.values() for engine in part.engines})

    @property
    def shards(self) -> list[Shard]:
        return [shard for part in self.parts.values() for shard in part.shards]

    @property
    def hash_files(self) -> list[HashFile]:
        return [file for part in self.parts.values() for file in part.hashes]

    def next_hashes(self, name: str) -> Path:
        """Where the hashes of the texts of a part's next commit belong."""
        return self.path.parent / HASHES / name / f"{len(self.part(name).hashes):05d}"

    def ask(self, asked: dict[str, Any]) -> None:
        self._write({"asked": asked})

    def find(self, copies: Found) -> None:
        """The list of what is dropped is on disk."""
        self._write({"copies": asdict(copies)})

    def save_tokenizer(self, fingerprint: str) -> None:
        self._write({"tokenizer": fingerprint})

    def use(self, name: str, engine: str | None) -> None:
        """Note what encodes a part from here on, if it is a library."""
        if engine is not None and engine not in self.part(name).engines:
            self._write({"part": name, "engine": engine})

    def begin(self, name: str, split: Split) -> None:
        self._write({"part": name, "split": asdict(split)})

    def commit(
        self,
        name: str,
        shards: list[Shard],
        position: Position,
        hashes: HashFile | None = None,
    ) -> None:
        """`shards` and `hashes` are on disk; the documents from `position` on are in no shard.

        Args:
            hashes: of the texts in `shards`; None: there are no shards.
        """
        self._write({"part": name, **_kept(shards, hashes), "position": asdict(position)})

    def hash_one(self, name: str, shard: Shard, hashes: HashFile) -> None:
        """`hashes`, of the texts in an unhashed shard, are on disk."""
        self._write({"part": name, "hashed": shard.file, "hashes": hashes.row()})

    def finish(
        self,
        name: str,
        shards: list[Shard],
        skipped: dict[str, Any],
        hashes: HashFile | None = None,
    ) -> None:
        """As `commit`, for the last shards."""
        self._write({"part": name, **_kept(shards, hashes), "done": True, "skipped": skipped})

    def _write(self, line: dict[str, Any]) -> None:
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
                raise ValueError("what was asked is not an object")
            self.asked = _first(self.asked, line["asked"])
        elif "copies" in line:
            self.copies = _first(self.copies, Found.parse(line["copies"]))
        elif "tokenizer" in line:
            self.tokenizer = _first(self.tokenizer, line["tokenizer"])
        else:
            name = line["part"]
            part = self.part(name)
            if "engine" in line:
                part.engines.append(str(line["engine"]))
            if "split" in line:
                part.split = _first(part.split, Split.parse(line["split"]))
            if "position" in line:
                part.position = Position.parse(line["position"])
            shards = [Shard.parse(row) for row in line.get("shards", ())]
            sides = {f"{name}/{side}".lstrip("/") for side in ("train", "val")}
            if any(shard.file.rpartition("/")[0] not in sides for shard in shards):
                raise ValueError(f"a shard is not in the part {name!r}")
            if "hashes" in line:
                part.hashes.append(HashFile.parse(self.next_hashes(name), line["hashes"]))
                hashed = line.get("hashed")
                part.unhashed = [shard for shard in part.unhashed if shard.file != hashed]
            else:
                part.unhashed += shards
            part.shards += shards
            if len({shard.file for shard in part.shards}) < len(part.shards):
                raise ValueError("a shard that is there already")
            part.done = part.done or "done" in line
            if "skipped" in line:
                part.skipped = asdict(Skipped.parse(line["skipped"]))


def _kept(shards: list[Shard], hashes: HashFile | None) -> dict[str, Any]:
    rows: dict[str, Any] = {"shards": [asdict(shard) for shard in shards]}
    return rows if hashes is None else rows | {"hashes": hashes.row()}


def _first(known: Any, value: Any) -> Any:
    """`value`, which a run writes once."""
    if known is not None:
        raise ValueError("a line that a run writes once is there twice")
    return value


def _whole_lines(path: Path) -> list[bytes]:
    """The complete lines of the file; an incomplete last line is cut off.

    For that the file is rewritten. So it is if it has a second name, whose content then stays.
    """
    if not path.exists():
        return []
    content = given.read_bytes(path, given.LARGE, "the journal")
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content) or path.stat().st_nlink > 1:
        write_atomically(path, whole)
    return whole.splitlines()
