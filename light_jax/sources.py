"""What `train_data` and `val_data` hold: paths of shards, or sources with weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, TypeGuard

from pydantic import Discriminator, Tag, field_validator

from light_llm.configfile import Config
from light_llm.files import urls

SPLITS = ("train", "val", "validation", "test")
"""Names of folders that say nothing of what is in them."""
NAME = re.compile(r"[\w.+-]{1,64}")


def check_paths(value: Any) -> Any:
    """`value`, one path of shards or several.

    Raises:
        ValueError: there is none, or one that is never read; the message goes on from the value.
    """
    if value == "" or value == [] or (isinstance(value, list) and "" in value):
        raise ValueError("must name a folder, a file or a glob of parquet shards")
    for path in value if isinstance(value, list) else [value]:
        if urls.is_url(path):
            urls.check(path)
    return value


class DataSource(Config):
    """An entry of `train_data` or `val_data` that mixes several sources."""

    path_keys = ("path",)

    path: str | list[str]
    weight: float | None = None
    """Its part of the tokens, relative to those of the other entries."""
    name: str | None = None

    @field_validator("path", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        texts = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("must be the path of shards, or a list of such paths")
        return value

    _named = field_validator("path")(check_paths)

    @field_validator("weight", mode="before")
    @classmethod
    def _above_zero(cls, value: Any) -> Any:
        try:
            legal = value is None or 0 < float(value) < math.inf
        except (TypeError, ValueError, OverflowError):
            legal = False
        if not legal:
            raise ValueError(
                "must be a finite number above 0, a part of the tokens such as 0.7; to leave a "
                "source out, remove its entry"
            )
        return value

    @field_validator("name")
    @classmethod
    def _a_word(cls, value: str | None) -> str | None:
        if value is not None and NAME.fullmatch(value) is None:
            raise ValueError("must be 1 to 64 letters, digits and . _ + - (metrics carry it)")
        return value

    @property
    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else self.path

    @property
    def label(self) -> str:
        """The name, or the last part of the (first) path that says something: `web` of
        data/web/train and of data/web/*.parquet."""
        if self.name is not None:
            return self.name
        parts = [part for part in self.paths[0].split("/") if part not in ("", ".", "..")]
        telling = [part for part in parts if part not in SPLITS and not set(part) & set("*?[")]
        last = (telling or parts or ["source"])[-1].removesuffix(".parquet")
        return re.sub(r"[^\w.+-]+", "-", last).strip("-")[:64] or "source"


class Taken(NamedTuple):
    """What was taken of a source."""

    name: str
    windows: int
    tokens: int
    epochs: float


def _form(value: Any) -> str:
    """How data are given: a path, several, or a mixture of sources."""
    if not isinstance(value, list | tuple):
        return "path"
    return "mixture" if value and not isinstance(value[0], str) else "paths"


DataPaths = Annotated[
    Annotated[str, Tag("path")]
    | Annotated[list[str], Tag("paths")]
    | Annotated[list[DataSource], Tag("mixture")],
    Discriminator(_form),
]
"""What `train_data` and `val_data` hold."""


def is_mixture(data: str | list[str] | list[DataSource]) -> TypeGuard[list[DataSource]]:
    """Whether data are sources with weights; paths alone are one sequence of shards."""
    return isinstance(data, list) and isinstance(data[0], DataSource)


def paths_of(data: str | list[str] | list[DataSource] | None) -> list[str]:
    """The paths of `train_data` or `val_data`, of all sources."""
    if data is None:
        return []
    if isinstance(data, str):
        return [data]
    if is_mixture(data):
        return [path for source in data for path in source.paths]
    return [path for path in data if isinstance(path, str)]


def fields_of(data: str | list[str] | list[DataSource], name: str) -> list[tuple[str, str]]:
    """(the key that holds it, such as `train_data[1].path`; a path) for each path of the key
    `name`."""
    if not is_mixture(data):
        return [(name, path) for path in paths_of(data)]
    return [
        (f"{name}[{number}].path", path)
        for number, source in enumerate(data)
        for path in source.paths
    ]


def check_data(value: Any) -> Any:
    """`value`, the data of a config.

    Raises:
        ValueError: there is no path, or two sources have one name or only some a weight; the
            message goes on from the value.
    """
    if value is None or value == [] or not is_mixture(value):
        return value if value is None else check_paths(value)
    labels = [source.label for source in value]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ValueError(f"has two sources named {twice!r}; give each a `name` of its own")
    without = [source.label for source in value if source.weight is None]
    if without and len(without) < len(value):
        raise ValueError(
            f"has no weight for {', '.join(without)}; give each entry a `weight`, its part of the "
            "tokens"
        )
    return value


def check_form(value: Any) -> Any:
    """`value`, if it has one of the forms of data.

    Raises:
        ValueError: it is none, or a list mixes two; the message goes on from the value.
    """
    each = value if isinstance(value, list | tuple) else [value]
    texts = [part for part in each if isinstance(part, str)]
    entries = [part for part in each if isinstance(part, Mapping | DataSource)]
    if value is None or len(texts) == len(each) or (each is value and len(entries) == len(each)):
        return value
    if each is value and len(texts) + len(entries) == len(each):
        raise ValueError(
            "mixes paths and entries {path, weight}; write each path as an entry, such as "
            f"{{path: {texts[0]}, weight: 1}}"
        )
    raise ValueError(
        "must be the path of shards, a list of such paths, or a list of entries {path, weight}"
    )
