"""The commit that this program runs from, where it is a checkout."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from light_llm.errors import UserError
from light_llm.files import given

_COMMIT = re.compile(r"[0-9a-f]{40,64}")


@functools.cache
def commit() -> str | None:
    """Read from .git, without running git; None where there is none, or it is not understood."""
    git = Path(__file__).resolve().parents[2] / ".git"
    try:
        if git.is_file():  # of a worktree
            git = git.parent / given.read_text(git).removeprefix("gitdir:").strip()
        head = given.read_text(git / "HEAD").strip()
        if head.startswith("ref:"):
            head = _resolved(git, head.removeprefix("ref:").strip())
    except (UserError, OSError):
        return None
    return head if _COMMIT.fullmatch(head) else None


def _resolved(git: Path, ref: str) -> str:
    shared = git / "commondir"
    common = git / given.read_text(shared).strip() if shared.is_file() else git
    for folder in (git, common):
        if (folder / ref).is_file():
            return given.read_text(folder / ref).strip()
    for line in given.read_text(common / "packed-refs").splitlines():
        sha, _, name = line.partition(" ")
        if name == ref:
            return sha
    return ""
