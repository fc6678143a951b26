"""From a row (JSON lines, parquet or a Hugging Face dataset) to its text."""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from light_llm.errors import UserError
from light_llm.files import given
from light_llm.printing import tell

TEXT_FIELDS = {
    "wikimedia/wikipedia": "text",
    "huggingfacefw/fineweb": "text",
    "huggingfacefw/fineweb-edu": "text",
    "huggingfacefw/fineweb-2": "text",
    "allenai/c4": "text",
    "togethercomputer/redpajama-data-1t": "text",
    "togethercomputer/redpajama-data-1t-sample": "text",
    "togethercomputer/redpajama-data-v2": "raw_content",
    "eleutherai/pile": "text",
    "monology/pile-uncopyrighted": "text",
    "tiiuae/falcon-refinedweb": "content",
    "openwebtext": "text",
    "skylion007/openwebtext": "text",
    "bookcorpus": "text",
    "bookcorpus/bookcorpus": "text",
}
"""The text column of well-known datasets, by their name on the hub in lower case."""

USUAL_FIELDS = ("text", "content", "body")

LONGEST_DOCUMENT = 64 * 2**20
"""Characters of a row's text."""

A_STRING = (
    "it must be a string: name another column with --text-column, or make a text of each row with "
    "--adapter-module"
)

Adapt = Callable[[dict[str, Any]], "str | None"]


@dataclass(frozen=True)
class RowText:
    """The text of a row: the first of `fields` that is there, or what `adapt` returns."""

    fields: tuple[str, ...]
    adapt: Adapt | None = None

    def field(self, names: Iterable[str], where: str) -> str | None:
        """Which of the columns `names` is needed; None with an adapter, which may need them all.

        Raises:
            UserError: none of `fields` is among them.
        """
        if self.adapt is not None:
            return None
        there = list(names)
        for field in self.fields:
            if field in there:
                return field
        wanted = " or ".join(map(repr, self.fields))
        listed = ", ".join(there) or "none"
        raise UserError(
            f"{where}: has no column {wanted}; choose with --text-column from: {listed}"
        )

    def text(self, row: dict[str, Any], where: str) -> str:
        """The text of a row; null is an empty text.

        Raises:
            UserError: the row has no such column, or its value is not a string.
        """
        if self.adapt is None:
            name = next((field for field in self.fields if field in row), None)
            if name is None:
                name = self.field(row, where)  # tells
            text, what, rule = row[name], repr(name), A_STRING  # type: ignore[index]
        else:
            what, rule = "what the adapter returns", "it must be a string, or None"
            try:
                text = self.adapt(row)
            except (Exception, SystemExit) as error:  # the user's code: name the row
                raise UserError(
                    f"{where}: the adapter raised {type(error).__name__}: {error}"
                ) from error
        if text is not None and not isinstance(text, str):
            raise UserError(f"{where}: {what} is of type {type(text).__name__}; {rule}")
        return bounded(whole_characters(text or ""), where)


def bounded(text: str, where: str) -> str:
    """The text, if it is short enough: a tokenizer needs hundreds of bytes per token.

    Raises:
        UserError: it is too long.
    """
    if len(text) > LONGEST_DOCUMENT:
        raise UserError(
            f"{where}: the document has {len(text):,} characters, and {LONGEST_DOCUMENT:,} are the "
            "limit for one; cut it into several"
        )
    return text


def whole_characters(text: str) -> str:
    """The text with U+FFFD for half surrogate pairs, which JSON can hold and UTF-8 cannot."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)
    return text


def fields_of(dataset: str | None, text_column: str | None) -> tuple[str, ...]:
    """The columns to try, in this order."""
    if text_column is not None:
        return (text_column,)
    known = TEXT_FIELDS.get((dataset or "").lower())
    return USUAL_FIELDS if known is None else (known,)


def load_adapter(module: str) -> tuple[Adapt, str]:
    """The function `adapt(row: dict) -> str | None` of a module, and the digest of its source.

    `module` is the path of a .py file or a dotted name, looked for from the working directory too.

    Raises:
        UserError: it cannot be imported, or has no such function.
    """
    failure = f"adapter_module={module!r}: cannot be imported (looked from {Path.cwd()})"
    try:
        source = given.read_bytes(module) if module.endswith(".py") else None
    except UserError as error:
        raise UserError(f"{failure}: {error}") from None
    tell(f"note: runs the code of {module} (adapter_module)")
    try:
        if source is not None:
            loaded = types.ModuleType(Path(module).stem)
            loaded.__file__ = module
            # not by an import, which would leave a __pycache__ beside the user's file
            exec(compile(source, module, "exec"), vars(loaded))
        else:
            sys.path.insert(0, str(Path.cwd()))
            try:
                loaded = importlib.import_module(module)
            finally:
                sys.path.pop(0)
            source = given.read_bytes(loaded.__file__ or "")
    except (Exception, SystemExit) as error:  # the user's code can raise anything
        raise UserError(f"{failure}: {type(error).__name__}: {error}") from error
    adapt = getattr(loaded, "adapt", None)
    if not callable(adapt):
        raise UserError(
            f"adapter_module={module!r}: has no function adapt(row); define one that takes a row, "
            "a dict, and returns its text or None"
        )
    return adapt, hashlib.sha256(source).hexdigest()
