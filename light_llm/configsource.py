"""A config file with what it extends: one mapping, and one text that needs no other file.

`extends: base.yaml` takes the keys of another file, one level deep. A section is merged key by key,
any other value replaces that of the base.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from light_llm.configtext import compose, dump, parse_mapping, read_config
from light_llm.errors import UserError
from light_llm.files import userpath

EXTENDS = "extends"


@dataclasses.dataclass(frozen=True)
class ConfigSource:
    """What a config file says, its base included."""

    path: Path
    data: dict[str, Any]
    text: str
    """The file's own text, or one that says the same as it and its base together."""
    own: dict[str, Any]
    """What the file says itself."""
    base: Path | None = None
    snapshot: bool = False
    """Whether a program wrote the file: it has the key that was set apart."""

    def blame(self, keys: Sequence[str]) -> str:
        """What a message about these keys ends in, if the base alone gives them."""
        if self.base is None or not keys:
            return ""
        if any(_has(self.own, key.split(".")) for key in keys):
            return ""
        given = any(_has(self.data, key.split(".")) for key in keys)
        return f" (in {self.base})" if given else ""


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping of a config file, its base included.

    Raises:
        UserError: as `read_source`.
    """
    return read_source(path).data


def read_source(path: str | Path, set_apart: str = "") -> ConfigSource:
    """Read a .yaml, .yml or .json file that holds one mapping, and the file that it extends.

    Args:
        set_apart: a key that a program adds to .json files, and that is not a part of the config.

    Raises:
        UserError: unreadable file, broken syntax, or a base that extends another file itself.
    """
    path = Path(path)
    text = read_config(path)
    own, snapshot = _parse(text, path, set_apart)
    if EXTENDS not in own:
        return ConfigSource(path, own, text, own, snapshot=snapshot)
    base = _base(path, own.pop(EXTENDS))
    given, _ = _parse(read_config(base), base, set_apart)
    if EXTENDS in given:
        raise UserError(
            f"{base}: extends={given[EXTENDS]!r} is one level too many, since {path} extends this "
            "file; extend one file that is complete"
        )
    data = _merged(given, own)
    return ConfigSource(path, data, _alone(path, base, text, own, data), own, base)


def _parse(text: str, path: Path, set_apart: str) -> tuple[dict[str, Any], bool]:
    data = parse_mapping(text, path)
    snapshot = path.suffix == ".json" and set_apart in data
    if snapshot:
        del data[set_apart]
    return data, snapshot


def _base(path: Path, value: Any) -> Path:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{path}: extends={value!r} must be the path of one config file")
    try:
        return path.parent / userpath.expanded(value)
    except ValueError as error:
        raise UserError(f"{path}: extends={value!r} {error}") from None


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(base)
    for key, value in own.items():
        old = both.get(key)
        sections = isinstance(old, Mapping) and isinstance(value, Mapping)
        both[key] = _merged(old, value) if sections else value  # type: ignore[arg-type]
    return both


def _has(data: Any, path: Sequence[str]) -> bool:
    for part in path:
        if not isinstance(data, Mapping) or part not in data:
            return False
        data = data[part]
    return True


def _alone(path: Path, base: Path, text: str, own: dict[str, Any], data: dict[str, Any]) -> str:
    """A text with all of `data`: that of the file, with its comments, and what its base adds."""
    if path.suffix == ".json":
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    head = f"# What {base.name} says is written out here."
    written = _written_out(text, own, data, head)
    try:
        same = parse_mapping(written, path) == data
    except UserError:
        same = False
    return written if same else f"{head}\n{dump(data)}"


def _written_out(text: str, own: dict[str, Any], data: dict[str, Any], head: str) -> str:
    text = text if text.endswith("\n") else f"{text}\n"
    root = compose(text)
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        return ""
    edits = enumerate(_edits(text, root, own, data, head))
    for _, (start, end, new) in sorted(edits, key=lambda each: (each[1][0], each[0]), reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _edits(
    text: str, node: yaml.MappingNode, own: Mapping[str, Any], data: Mapping[str, Any], head: str
) -> Iterator[tuple[int, int, str]]:
    """(start, end, what stands there instead) for a section that has a line for each key.

    Of two at the same place the earlier one stands first.

    Args:
        head: stands in the place of `extends`.
    """
    for key, value in node.value:
        if key.value not in own:
            yield key.start_mark.index, value.end_mark.index, head
            continue
        mine, whole = own[key.value], data[key.value]
        if mine != whole and value.flow_style:
            yield value.start_mark.index, value.end_mark.index, dump(whole, flow=True).strip()
        elif mine != whole:
            yield from _edits(text, value, mine, whole, head)
    rest = {key: value for key, value in data.items() if key not in own}
    if rest:
        indent = " " * node.value[0][0].start_mark.column
        place = _line_after(text, node)
        yield place, place, "".join(f"{indent}{line}\n" for line in dump(rest).splitlines())


def _line_after(text: str, node: yaml.Node) -> int:
    """Where the line after the last one of a node begins."""
    while isinstance(node, yaml.MappingNode) and not node.flow_style:
        node = node.value[-1][1]
    if isinstance(node, yaml.SequenceNode) and not node.flow_style:
        node = node.value[-1]
    end = node.end_mark.index
    return end if text[end - 1 : end] == "\n" else text.index("\n", end) + 1
