"""Configs: a mapping of text -> a frozen pydantic model, or a message that says what to fix.

The type of a field decides how its value is read, never the look of the text. The reader of config
files (`configtext`) leaves every number a string, so `lr: 3e-4` is a float, `num_steps: 1e6` is
1000000 and `wandb_run_name: 1e6` is a name.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from light_llm.errors import IllegalConfig


def derived() -> Any:
    """The default of a field whose value follows from others unless it is given.

    Left out and null are the same there. A validator of the config, or of the one that holds it,
    sets the value (`Config.derive`), so that every reader of the config finds a number.
    """
    return Field(default=None)


class Config(BaseModel):
    """Base of all configs: frozen, unknown keys refused, numbers coerced by the field's type."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            unknown = [str(key) for key in data if key not in cls.model_fields]
            if unknown:
                raise ValueError("; ".join(cls._unknown_key(key) for key in unknown))
        return data

    @model_validator(mode="before")
    @classmethod
    def _null_means_derived(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            return {k: v for k, v in data.items() if v is not None or not cls._is_derived(k)}
        return data

    @classmethod
    def _is_derived(cls, key: Any) -> bool:
        field = cls.model_fields.get(key)
        if field is None or field.is_required() or field.default is not None:
            return False
        return type(None) not in typing.get_args(field.annotation)  # else null is a value

    def derive(self, **values: Any) -> None:
        """Set fields. For validators only: afterwards the config is frozen."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def _unknown_key(cls, key: str) -> str:
        sections = {
            name: field.annotation
            for name, field in cls.model_fields.items()
            if isinstance(field.annotation, type) and issubclass(field.annotation, Config)
        }
        for section, inner in sections.items():
            if key in inner.model_fields:
                return f"{key} is not a key here; it belongs in the section {section!r}"
        near = difflib.get_close_matches(key, cls.model_fields, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(cls.model_fields)}"
        return f"{key} is not a known key; {hint}"

    @field_validator("*", mode="before")
    @classmethod
    def _coerce_number(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        annotation = cls.model_fields[info.field_name].annotation
        wanted, names = _scalar_types(annotation), _names(annotation)
        if isinstance(value, bool) and wanted and bool not in wanted:
            raise ValueError("must be a value, not true or false")
        if bool in wanted and not (value is None or isinstance(value, bool) or value in names):
            raise ValueError(" or ".join(["must be true, false", *names]) if names else BOOL)
        if int in wanted:
            value = _to_int(value)
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError("must fit into 64 bits")
        return value


BOOL = "must be true or false"


def _names(annotation: Any) -> list[str]:
    """The words that an annotation like `bool | Literal["auto"]` admits beside true and false."""
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return [part for part in parts if isinstance(part, str)]
    return [name for part in parts for name in _names(part)]


def _scalar_types(annotation: Any) -> set[type]:
    """The scalar types that an annotation like `int | None` admits."""
    if typing.get_origin(annotation) is Annotated:
        return _scalar_types(typing.get_args(annotation)[0])
    if parts := typing.get_args(annotation):
        return set().union(*(_scalar_types(part) for part in parts))
    return {annotation} & {bool, int, float, str}


def _to_int(value: Any) -> Any:
    """`1000`, `"1000"`, `1e6` and `"1e6"` are whole numbers; anything else is left to pydantic."""
    if isinstance(value, str):
        try:
            return int(value)  # exact however long, which a float is not
        except ValueError:
            pass
    if isinstance(value, str | float):
        try:
            number = float(value)
        except ValueError:
            return value
        return int(number) if number.is_integer() else value
    return value


def explain(error: ValidationError) -> list[str]:
    """Each problem of a pydantic error as one line: `section.field=value rule`."""
    return [_explain_one(problem) for problem in error.errors()]


def _explain_one(problem: Mapping[str, Any]) -> str:
    # a part in brackets names the kind of a value that may be of several
    where = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("("))
    message = str(problem["msg"]).removeprefix("Value error, ")
    value = problem["input"]
    if problem["type"] == "missing":
        return f"{where} is required and not set"
    if isinstance(value, Mapping | BaseModel) and problem["type"] == "value_error":
        # a rule between fields names them itself
        return f"{where}.{message}" if where else message
    kind = problem["type"]
    if kind == "literal_error":
        message = f"must be {problem['ctx']['expected']}"
    elif kind.startswith("model_"):
        message = "must be a section with its own keys, or left out"
    elif kind.startswith("int_"):
        message = "must be a whole number"
    elif kind.startswith("float_"):
        message = "must be a number"
    elif not message.startswith("must"):
        message = message.removeprefix("Input ").replace("should be", "must be")
    return f"{where}={_shown(value)} {message}"


def _shown(value: Any) -> str:
    """As it stands in the file: numbers come as strings (see above) and are shown bare."""
    try:
        return str(value) if isinstance(value, str) and float(value) is not None else repr(value)
    except ValueError:
        return repr(value)


ConfigT = TypeVar("ConfigT", bound=Config)


def validate(config_class: type[ConfigT], data: Mapping[str, Any], source: str | Path) -> ConfigT:
    """`data` as a `config_class`.

    Raises:
        IllegalConfig: every problem on its own line, after `source`.
    """
    try:
        return config_class.model_validate(data)
    except ValidationError as error:
        problems = explain(error)
    known, unknown = _known_part(config_class, data)
    if unknown:  # they keep the rest of their section from being looked at
        problems = unknown
        try:
            config_class.model_validate(known)
        except ValidationError as error:
            problems += explain(error)
    raise IllegalConfig(source, [(key_of(config_class, problem), problem) for problem in problems])


def _known_part(
    config_class: type[Config], data: Mapping[str, Any], section: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """`data` without the keys that its sections do not have, and what is wrong with those."""
    known: dict[str, Any] = {}
    unknown: list[str] = []
    for key, value in data.items():
        field = config_class.model_fields.get(key)
        kind: Any = None if field is None else field.annotation
        if field is None:
            unknown.append(section + config_class._unknown_key(str(key)))
        elif isinstance(kind, type) and issubclass(kind, Config) and isinstance(value, Mapping):
            known[key], inner = _known_part(kind, value, f"{section}{key}.")
            unknown += inner
        else:
            known[key] = value
    return known, unknown


def key_of(config_class: type[Config], problem: str) -> str:
    """The key that a line of `explain` begins with, without what pydantic adds (`train_data.str`);
    "" if it begins with none."""
    found = re.match(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", problem)
    parts = found[0].split(".") if found else []
    section: type[Config] = config_class
    for place, part in enumerate(parts):
        field = section.model_fields.get(part)
        kind = None if field is None else field.annotation
        if not (isinstance(kind, type) and issubclass(kind, Config)):
            return ".".join(parts[: place + 1])
        section = kind
    return ".".join(parts)
