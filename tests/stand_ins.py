"""Programs of a cluster, as tests write them for the scripts of deploy/."""

from __future__ import annotations

from pathlib import Path

from tiny_runs import ROOT

DEPLOY = ROOT / "deploy"


def program(folder: Path, name: str, text: str) -> None:
    """A program that a script finds on its PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
