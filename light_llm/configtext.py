"""The text of a config file, YAML or JSON, and the mapping that it holds.

Every number stays a string: the type of a field decides how its value is read (`configfile`), never
the look of the text.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from light_llm.errors import UserError, one_line
from light_llm.files import given, userpath


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without numbers and dates (see the module's docstring), duplicate keys refused.

    Aliases are refused, since a few of them grow without bound, and so are tags: no key needs one.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(
                f"line {line}: an alias (*{event.anchor}) is not allowed; write it out"
            )
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError(
                f"line {line}: a tag ({event.tag}) is not allowed; write a plain value"
            )
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in rows
        if tag.rsplit(":", 1)[-1] in ("null", "bool", "merge")
    ]
    for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"line {line}: a key must be a plain word")
        if key_node.value in seen:
            raise UserError(
                f"line {line}: the key {key_node.value!r} is there twice (first on line "
                f"{seen[key_node.value]}); keep one of them"
            )
        seen[key_node.value] = line
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads as the same: a text that looks like a number needs no quotes."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def dump(data: Any, *, flow: bool = False) -> str:
    """YAML that `parse_mapping` reads as `data`, but for its numbers, which it reads as text."""
    return yaml.dump(
        _numbers_as_text(data),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=flow,
        width=2**31 if flow else 100,
    )


def _numbers_as_text(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _numbers_as_text(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_numbers_as_text(value) for value in data]
    return data if data is None or isinstance(data, bool) else str(data)


def compose(text: str) -> yaml.Node | None:
    """The nodes of a YAML text, which know where they stand in it."""
    return yaml.compose(text, Loader=_Loader)  # type: ignore[arg-type]


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"the key {key!r} is there twice in one object; keep one of them")
    return dict(pairs)


def read_config(path: str | Path) -> str:
    """The text of a .yaml, .yml or .json file.

    Raises:
        UserError: missing or unreadable file, or another ending.
    """
    try:
        path = Path(userpath.with_home(str(path)))
    except ValueError as error:
        raise UserError(f"{path}: the path {error}") from None
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise UserError(f"{path}: a config file must end in .yaml, .yml or .json")
    if not os.path.lexists(path):
        raise UserError(f"{path}: there is no such config file (looked from {Path.cwd()})")
    return given.read_text(path, what="the config file")


def parse_mapping(text: str, path: str | Path) -> dict[str, Any]:
    """The mapping that the text of the config file `path` holds.

    Raises:
        UserError: broken syntax (with the line), duplicate keys, or the top is not a mapping.
    """
    path, text = Path(path), text.removeprefix("\ufeff")
    try:
        if path.suffix == ".json":
            # numbers stay text here too, so that both formats coerce alike
            data = json.loads(
                text,
                object_pairs_hook=_no_duplicates,
                parse_int=str,
                parse_float=str,
                parse_constant=str,
            )
        else:
            data = yaml.load(text, Loader=_Loader)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (yaml.YAMLError, ValueError, AttributeError, KeyError, RecursionError) as error:
        # the last four: an explicit tag on a value that it does not fit, or a monstrous nesting
        raise UserError(f"{path}: not valid {path.suffix[1:].upper()}: {one_line(error)}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: must hold key: value pairs at the top, not {type(data).__name__}")
    return data
