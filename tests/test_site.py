"""The pages outside of GitHub: README.md on PyPI, and the site that `make docs` makes."""

from __future__ import annotations

import re
import runpy
from importlib import import_module

import pytest
from pages import PAGES, REPOSITORY, ROOT, links, name_of, prose, prose_of

HOOKS = runpy.run_path(str(ROOT / "docs/hooks.py"))


def test_the_readme_can_be_read_elsewhere():
    """On PyPI there is no folder beside it: links name the repository, or a place in the page."""
    assert [link for link in links(ROOT / "README.md") if not re.match("https://|#", link)] == []
    text = prose(ROOT / "README.md")
    defined = set(re.findall(r"^\[([^\]]+)\]: ", text, re.MULTILINE))
    body = re.sub(r"^\[[^\]]+\]: .*$|`[^`]*`", "", text, flags=re.MULTILINE)
    used = {path or text for text, path in re.findall(r"\[([^\]]+)\](?:\[([^\]]+)\])?(?!\()", body)}
    assert used == defined


def test_the_site_has_every_page():
    text = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"^ +- [^:]+: (\S+\.md)$", text, re.MULTILINE)
    there = {path.name for path in (ROOT / "docs").glob("*.md")} | HOOKS["TOP"].keys()
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_of_the_site_links_to_pages_of_it_or_to_the_repository(page):
    pages = {source: name for name, source in HOOKS["TOP"].items()}
    name = pages.get(name_of(page), page.name)
    site = HOOKS["for_the_site"](page.read_text(), name, REPOSITORY)
    found = re.findall(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", prose_of(site), re.MULTILINE)
    assert len(found) == len(links(page))
    for link in (inline or defined for inline, defined in found):
        path = link.partition("#")[0]
        if not path or ("://" in path and not path.startswith(REPOSITORY)):
            continue
        at_the_repository = path.removeprefix(f"{REPOSITORY}/blob/main/")
        there = path in HOOKS["TOP"] or (ROOT / "docs" / path).exists()
        assert there or (at_the_repository != path and (ROOT / at_the_repository).exists()), link
        assert not re.match(r"docs/.*\.md|http", at_the_repository), f"{link} leaves the site"


def test_blocks_of_code_stay_as_they_are_on_the_site():
    text = "- item\n\n  ```\n  [a](b.md)\n      deep\n  ```\n\n```\n  [a](../b)\n```\n"
    site = HOOKS["for_the_site"](text, "x.md", REPOSITORY)
    assert site == (
        "- item\n\n    ```\n    [a](b.md)\n        deep\n    ```\n\n```\n  [a](../b)\n```\n"
    )


def test_every_public_name_is_on_the_page_of_the_api():
    text = (ROOT / "docs/api.md").read_text()
    shown = re.findall(r"<!-- ::: ([\w.]+)", text)
    for package in ("light_llm", "light_jax"):
        for name in set(import_module(package).__all__) - {"__version__"}:
            assert f"`{package}.{name}`" in text, name
    for name in shown:
        module, _, attribute = name.rpartition(".")
        assert getattr(import_module(module), attribute), name
