"""plan.json: how a run in parts divides its input, and what all of its parts have in common."""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from light_llm.errors import UserError
from light_llm.files import checksum, given
from light_llm.files.disk import Held, locked, write_atomically
from light_llm.preprocess.copies import Found
from light_llm.preprocess.skipped import check_number
from light_llm.preprocess.stage import LOCK, PARTS, PLAN, Damaged

FORMAT = 1


@dataclass(frozen=True)
class Plan:
    asked: dict[str, Any]
    """What the run was asked for: options, input, adapter, versions, the tokenizer of
    tokenizer_path."""
    tokenizer: str
    """The fingerprint of the tokenizer of all parts, in new/tokenizer."""
    parts: list[list[tuple[str, int]]]
    """The files of each part, in the order of the input, with their bytes."""
    copies: Found | None = None
    """What --dedupe drops."""

    def files_of(self, part: int) -> slice:
        """Where the files of a part are in those of the input."""
        start = sum(map(len, self.parts[:part]))
        return slice(start, start + len(self.parts[part]))

    def bytes_of(self, part: int) -> int:
        return sum(size for _, size in self.parts[part])

    def asked_of(self, part: int) -> dict[str, Any]:
        """What a part is asked for, as its journal has it."""
        return self.asked | {"tokenizer": self.tokenizer, "part": part}


def folder_of(stage: Path, part: int) -> Path:
    return stage / PARTS / f"{part:05d}"


def running_parts(stage: Path) -> list[int]:
    """The parts that are being made now, by their locks."""
    return [
        int(lock.parent.name) for lock in sorted(stage.glob(f"{PARTS}/*/{LOCK}")) if _is_held(lock)
    ]


def _is_held(lock: Path) -> bool:
    try:
        with locked(lock, ""):
            return False
    except Held:
        return True


def divide(sizes: Sequence[int], parts: int) -> list[slice]:
    """Consecutive files for each part, one at least: a part ends at the file whose end is nearest
    to its share of all bytes.

    Args:
        sizes: the bytes of each file, of as many files as parts or more.
    """
    ends = [parts * end for end in (0, *itertools.accumulate(sizes))]  # whole numbers throughout
    cuts = [0]
    for part in range(1, parts):
        share = ends[-1] // parts * part
        at = bisect.bisect_left(ends, share)
        if at and share - ends[at - 1] < ends[at] - share:
            at -= 1
        cuts.append(min(max(at, cuts[-1] + 1), len(sizes) - (parts - part)))
    return [slice(*pair) for pair in itertools.pairwise([*cuts, len(sizes)])]


def write_plan(stage: Path, plan: Plan) -> None:
    """Write the plan, once all that it names is on the disk: with it the parts may begin."""
    content: dict[str, Any] = {"format": FORMAT, **asdict(plan)}
    content["crc32"] = checksum.of_json(content)
    write_atomically(stage / PLAN, (json.dumps(content) + "\n").encode())


def read_plan(stage: Path) -> Plan | None:
    """The plan that `write_plan` wrote; None: there is none.

    Raises:
        Damaged: the file is something else.
    """
    path = stage / PLAN
    if not path.exists():
        return None
    try:
        content = given.read_json(path, given.LARGE)
        known = content.pop("crc32")
        if known != checksum.of_json(content):
            raise ValueError("it does not have its checksum")
        if content["format"] != FORMAT:
            raise ValueError(
                f"it has format {content['format']!r}, and this version reads {FORMAT}"
            )
        parts = [[(str(name), check_number(size)) for name, size in p] for p in content["parts"]]
        copies = content.get("copies")  # a plan of an earlier version has none
        found = None if copies is None else Found.parse(copies)
        return Plan(dict(content["asked"]), str(content["tokenizer"]), parts, found)
    except (UserError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(
            f"{path}: is not a plan that --prepare wrote ({error!r}); prepare again with "
            "--overwrite, which discards the parts that are made"
        ) from None
