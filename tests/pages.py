"""The pages of the docs, as their tests read them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
(REPOSITORY,) = re.findall(r"^repo_url: (\S+)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def fences(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each block."""
    return [(language, text) for _, language, text in FENCE.findall(page.read_text())]


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in fences(page) if language in languages]


def prose_of(text: str) -> str:
    return FENCE.sub("", text)


def prose(page: Path) -> str:
    """The page without its blocks."""
    return prose_of(page.read_text())


def links(page: Path) -> list[str]:
    definitions = re.findall(r"^\[[^\]]+\]: (\S+)$", prose(page), re.MULTILINE)
    return re.findall(r"\]\(([^)\s]+)\)", prose(page)) + definitions
