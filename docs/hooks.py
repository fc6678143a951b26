"""The site of the docs (`make docs`): what mkdocs does not do by itself.

Pages are written for GitHub. Here the pages at the top of the repository join them, links go to
where they lead on the site, and comments of the form `<!-- ::: NAME -->` become the reference of
that name.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Pages outside docs/, by what they are called on the site.
TOP = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
}
LINK = re.compile(r"(?<=\]\()[^)\s]+(?=\))|(?<=\]: )http\S+$", re.MULTILINE)
FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
REFERENCE = re.compile(r"<!-- (::: .*?) -->", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    for name, source in TOP.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]  # one page has no neighbours to list
    return for_the_site(markdown, page.file.src_uri, config.repo_url or "")


def for_the_site(text: str, page: str, repository: str) -> str:
    """The text of a page of the site, from what stands in the repository."""
    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [prose(text[end : fence.start()], page, repository), block(fence)]
        end = fence.end()
    return "".join([*parts, prose(text[end:], page, repository)])


def prose(text: str, page: str, repository: str) -> str:
    text = LINK.sub(lambda match: link(match.group(), page, repository), indented(text))
    return REFERENCE.sub(r"\1", text)


def block(fence: re.Match[str]) -> str:
    """A block of code; one that stands inside an item moves as a whole."""
    more = " " * (4 - len(fence[1])) if fence[1] else ""
    return re.sub("^(?=.)", more, fence.group(), flags=re.MULTILINE)


def indented(text: str) -> str:
    """Python's Markdown wants four spaces where GitHub takes what stands inside an item by two."""
    return re.sub(r"^ {2,3}(?=\S)", "    ", text, flags=re.MULTILINE)


def link(target: str, page: str, repository: str) -> str:
    """Where a link of a page leads on the site: to another page of it, else to the repository.

    Args:
        target: as it stands in the repository: relative to its page, or an address in `repository`.
        page: what the page is called on the site; its pages lie side by side.
    """
    path, mark, anchor = target.partition("#")
    address = re.fullmatch(re.escape(repository) + r"/(?:blob|raw)/main/(.+)", path)
    if address:
        path = address[1]
    elif "://" in path or not path:
        return target
    else:
        path = posixpath.normpath(posixpath.join("" if page in TOP else "docs", path))
    pages = {source: name for name, source in TOP.items()}
    if path in pages or (path.startswith("docs/") and not path.endswith(".py")):
        path = pages.get(path, path.removeprefix("docs/"))
    else:
        path = f"{repository}/blob/main/{path}"
    return path + mark + anchor
