"""A mapping -> a config, or all that is wrong with it at once, each line with its remedy."""

from __future__ import annotations

import re
import typing
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from light_llm.configfile import Config, is_derived, keys_of, section_in, unknown_key
from light_llm.configsource import ConfigSource
from light_llm.errors import IllegalConfig
from light_llm.files.urls import without_secrets

ConfigT = TypeVar("ConfigT", bound=Config)
_NAMED = re.compile(r"(?<![\w.])([A-Za-z_][\w.]*)=")


def validate(
    config_class: type[ConfigT],
    data: Mapping[str, Any],
    source: str | Path | ConfigSource,
    *,
    expand: bool = False,
) -> ConfigT:
    """`data` as a `config_class`.

    Args:
        expand: replace `~` and environment variables in its paths. For what a user wrote.

    Raises:
        IllegalConfig: every problem on its own line, after `source`.
    """
    context = {"expand": expand}
    try:
        return config_class.model_validate(data, context=context)
    except ValidationError:
        problems = _problems(config_class, data, context)
    if not isinstance(source, ConfigSource):
        raise IllegalConfig(source, [(problem.key, problem.line) for problem in problems])
    lines = [(each.key, f"{each.line}{source.blame(each.keys)}") for each in problems]
    raise IllegalConfig(source.path, lines)


class Problem(NamedTuple):
    """What is wrong, as `section.field=value rule`, and the keys that it is about."""

    line: str
    keys: tuple[str, ...]

    @property
    def key(self) -> str:
        return self.keys[0] if self.keys else ""


def _problems(
    config_class: type[Config], data: Mapping[str, Any], context: dict[str, Any]
) -> list[Problem]:
    """All of them. A key with a problem is left out, and the rest is looked at again: so a rule
    between fields is told too, unless it looks at a field that has a problem itself."""
    known, found, wrong = _known_part(config_class, config_class, data)
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a config that nobody wrote
            try:
                config_class.model_validate(known, context=context)
                return found
            except ValidationError as error:
                seen = [_problem(config_class, known, each) for each in error.errors()]
        told = {(problem.line, problem.keys) for problem in found}
        for problem, is_rule in seen:
            fresh = (problem.line, problem.keys) not in told
            if fresh and not (is_rule and _depends(config_class, problem.keys, known, wrong)):
                found.append(problem)
        keys = [key for problem, _ in seen for key in problem.keys]
        less = known
        for key in keys:
            less = _without(config_class, less, key.split("."))
        wrong |= set(keys)
        if less == known:
            return found
        known = less


def _known_part(
    root: type[Config], config_class: type[Config], data: Mapping[str, Any], at: str = ""
) -> tuple[dict[str, Any], list[Problem], set[str]]:
    """(`data` without the keys that its sections do not have, these, and what was meant)."""
    known: dict[str, Any] = {}
    problems: list[Problem] = []
    meant: set[str] = set()
    for key, value in data.items():
        field = config_class.model_fields.get(key)
        section = None if field is None else section_in(field.annotation)
        if field is None:
            line, instead = unknown_key(root, at, str(key))
            problems.append(Problem(line, (f"{at}{key}",)))
            meant |= set() if instead is None else {instead}
        elif section is not None and isinstance(value, Mapping):
            known[key], inner, others = _known_part(root, section, value, f"{at}{key}.")
            problems, meant = problems + inner, meant | others
        else:
            known[key] = value
    return known, problems, meant


def _problem(
    config_class: type[Config], data: Mapping[str, Any], error: Mapping[str, Any]
) -> tuple[Problem, bool]:
    """An error of pydantic, and whether it is a rule between fields.

    Such a rule names the fields that it looks at as `key=value`, relative to its section.
    """
    message = str(error["msg"]).removeprefix("Value error, ")
    key, shown = _place(config_class, error["loc"])
    value, kind = error["input"], error["type"]
    if kind == "missing":
        return Problem(f"{shown} is required and not set", (key,)), False
    keys = keys_of(config_class)
    whole = not key or section_in(keys[key].annotation) is not None
    if whole and isinstance(value, Mapping | BaseModel) and kind == "value_error":
        line = f"{key}.{message}" if key else message
        at = f"{key}." if key else ""
        named = [f"{at}{name}" for name in _NAMED.findall(message)]
        named = [name for name in dict.fromkeys(named) if name in keys]
        return Problem(line, tuple(named) or ((key,) if key else ())), True
    if kind == "literal_error":
        message = f"must be {error['ctx']['expected']}"
    elif kind.startswith("model_"):
        message = "must be a section with its own keys, or left out"
    elif kind.startswith("int_"):
        message = "must be a whole number"
    elif kind.startswith("float_"):
        message = "must be a number"
    elif not message.startswith(("must", "needs", "names", "has")):
        message = message.removeprefix("Input ").replace("should be", "must be")
    value_shown = without_secrets(_shown(value))
    return Problem(f"{shown}={value_shown} {message}", (key,)), False


def _place(config_class: type[Config], loc: Sequence[int | str]) -> tuple[str, str]:
    """(the dotted key of a place of pydantic's, the same with the number in a list, and what is
    below).

    Pydantic adds which kind of a union a value was taken for, as in `train_data.paths`.
    """
    section: type[Config] | None = config_class
    keys: list[str] = []
    number = ""
    for part in loc:
        if section is not None and part in section.model_fields:
            keys.append(str(part))
            section = section_in(section.model_fields[str(part)].annotation)
        elif isinstance(part, int):
            number += f"[{part}]"
        elif number and not part.startswith(("list[", "str")):
            number += f".{part}"
    return ".".join(keys), ".".join(keys) + number


def _shown(value: Any) -> str:
    """As it stands in the file: numbers come as strings (`configtext`) and are shown bare."""
    try:
        return str(value) if isinstance(value, str) and float(value) is not None else repr(value)
    except ValueError:
        return repr(value)


def _depends(
    config_class: type[Config],
    keys: Sequence[str],
    data: Mapping[str, Any],
    wrong: Collection[str],
) -> bool:
    """Whether a rule looks at a field that has a problem, or that follows from one that may."""
    fields = keys_of(config_class)
    for key in keys:
        if any(key == bad or key.startswith(f"{bad}.") for bad in wrong):
            return True
        section = key.partition(".")[0]
        if is_derived(fields[key]) and not _is_given(data, key.split(".")):
            return any(bad.partition(".")[0] == section for bad in wrong)
    return False


def _is_given(data: Any, path: Sequence[str]) -> bool:
    for part in path:
        if not isinstance(data, Mapping) or part not in data:
            return False
        data = data[part]
    return True


def _without(
    config_class: type[Config], data: Mapping[str, Any], path: Sequence[str]
) -> dict[str, Any]:
    """`data` without the key at `path`; what must be there gets a value that is legal."""
    name, *rest = path
    less = dict(data)
    field = config_class.model_fields[name]
    section = section_in(field.annotation)
    if rest and section is not None and isinstance(less.get(name), Mapping):
        less[name] = _without(section, less[name], rest)
    elif field.is_required():
        less[name] = _stand_in(field)
    else:
        less.pop(name, None)
    return less


def _stand_in(field: FieldInfo) -> Any:
    """A legal value of a required field: the first choice, 1 or a text."""
    if typing.get_origin(field.annotation) is Literal:
        return typing.get_args(field.annotation)[0]
    return 1 if field.annotation in (int, float) else "unknown"
