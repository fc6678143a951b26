"""The prompts of llm-run: those of the command line, then those of a file."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from light_llm.errors import UserError
from light_llm.files import given


class Prompt(NamedTuple):
    """A text to continue, and where it came from, for messages; "" if there is only one."""

    text: str
    source: str = ""


def read_prompts(texts: Sequence[str], file: str | None) -> list[Prompt]:
    """The texts of --prompt, then the lines of --prompts-file.

    Raises:
        UserError: the file cannot be read, holds no prompt, or has a line without one.
    """
    prompts = [Prompt(text, f"--prompt number {n}") for n, text in enumerate(texts, start=1)]
    if file is not None:
        prompts += _of_file(Path(file))
    return [Prompt(prompts[0].text)] if len(prompts) == 1 else prompts


def _of_file(path: Path) -> list[Prompt]:
    """A prompt a line; of a file that ends in .jsonl, the key `prompt` of each line's object.

    Bytes that are not UTF-8 are kept, as Python keeps those of the command line; a byte order mark
    is none of the first prompt's.
    """
    data = given.read_bytes(path, what="the file of prompts").removeprefix(codecs.BOM_UTF8)
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    prompts = list(_of_json(path, lines) if path.suffix == ".jsonl" else _of_text(path, lines))
    if not prompts:
        raise UserError(f"{path}: holds no prompt; put one in each line")
    return prompts


def _of_text(path: Path, lines: Sequence[bytes]) -> Iterator[Prompt]:
    for n, line in enumerate(lines, start=1):
        text = line.removesuffix(b"\r").decode("utf-8", "surrogateescape")
        yield Prompt(text, f"{path}, line {n}")


def _of_json(path: Path, lines: Sequence[bytes]) -> Iterator[Prompt]:
    from light_llm.preprocess.rows import whole_characters

    for n, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}, line {n}"
            row = given.parse_json(line, where)
            text = row.get("prompt") if isinstance(row, dict) else None
            if not isinstance(text, str):
                raise UserError(f'{where}: must be an object as {{"prompt": "some text"}}')
            yield Prompt(whole_characters(text), where)
