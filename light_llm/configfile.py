"""Configs: a mapping of text -> a frozen pydantic model, or a message that says what to fix.

The type of a field decides how its value is read, never the look of the text. The reader of config
files (`configtext`) leaves every number a string, so `lr: 3e-4` is a float, `num_steps: 1e6` is
1000000 and `wandb_run_name: 1e6` is a name.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from light_llm.files import urls, userpath


def derived() -> Any:
    """The default of a field whose value follows from others unless it is given.

    Left out and null are the same there. A validator of the config, or of the one that holds it,
    sets the value (`Config.derive`), so that every reader of the config finds a number.
    """
    return Field(default=None)


def is_derived(field: FieldInfo | None) -> bool:
    """Whether `derived` made the field."""
    if field is None or field.is_required() or field.default is not None:
        return False
    return type(None) not in typing.get_args(field.annotation)  # else null is a value


class Config(BaseModel):
    """Base of all configs: frozen, unknown keys refused, numbers coerced by the field's type."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    path_keys: ClassVar[tuple[str, ...]] = ()
    """The fields that hold paths of the user's: one, or several."""
    hub_keys: ClassVar[tuple[str, ...]] = ()
    """Those of them that may hold the name of something on a hub instead."""
    other_names: ClassVar[Mapping[str, str]] = {}
    """What other programs call a key -> its dotted name here, and a remark."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            unknown = [str(key) for key in data if key not in cls.model_fields]
            if unknown:
                raise ValueError("; ".join(unknown_key(cls, "", key)[0] for key in unknown))
        return data

    @model_validator(mode="before")
    @classmethod
    def _null_means_derived(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            fields = cls.model_fields
            return {k: v for k, v in data.items() if v is not None or not is_derived(fields.get(k))}
        return data

    def derive(self, **values: Any) -> None:
        """Set fields. For validators only: afterwards the config is frozen."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @field_validator("*")
    @classmethod
    def _expand_paths(cls, value: Any, info: ValidationInfo) -> Any:
        """`~` and `$NAME` in what a user wrote; what a program wrote down is a path as it is."""
        if info.field_name in cls.path_keys and info.context and info.context.get("expand"):
            paths = _expanded(value)
            if info.field_name in cls.hub_keys and paths != value and "$" in str(value):
                _check_local(str(paths))
            return paths
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _coerce_number(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        annotation = cls.model_fields[info.field_name].annotation
        wanted, names = _scalar_types(annotation), _names(annotation)
        if isinstance(value, bool) and wanted and bool not in wanted:
            texts = str in wanted and not wanted & {int, float}
            raise ValueError(f"must be a {'text' if texts else 'value'}, not true or false{SWITCH}")
        if bool in wanted and not (value is None or isinstance(value, bool) or value in names):
            raise ValueError(" or ".join(["must be true, false", *names]) if names else BOOL)
        if int in wanted:
            value = _to_int(value)
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError("must fit into 64 bits")
        return value


BOOL = "must be true or false"
SWITCH = " (which yes, no, on and off are in YAML: put such a text in quotes)"


def _expanded(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_expanded, value))
    if isinstance(value, Config):  # it expanded its own
        return value
    if value is None or urls.is_url(value):  # what a variable holds is sent nowhere
        return value
    path = type(value)(userpath.expanded(str(value)))
    if urls.is_url(path):
        raise ValueError("must not become a URL by its variables; write the URL out")
    return path


def _check_local(path: str) -> None:
    if not path.startswith(("/", "./", "../")):
        raise ValueError(
            "must begin with / or ./ once its variables are replaced: any other name may be asked "
            "of a hub, which the value of a variable is never sent to"
        )


def section_in(annotation: Any) -> type[Config] | None:
    """The section that a field of this annotation holds, or may hold; None if it is no section, as
    a list of entries is none."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    if typing.get_origin(annotation) is list:
        return None
    found = (section_in(part) for part in typing.get_args(annotation))
    return next((section for section in found if section is not None), None)


def keys_of(config_class: type[Config], at: str = "") -> dict[str, FieldInfo]:
    """Every key of a config by its dotted name, sections too, in the order of the classes."""
    found: dict[str, FieldInfo] = {}
    for name, field in config_class.model_fields.items():
        found[f"{at}{name}"] = field
        if (section := section_in(field.annotation)) is not None:
            found |= keys_of(section, f"{at}{name}.")
    return found


def known_as(config_class: type[Config], name: str) -> str | None:
    """The dotted key that a name stands for, with a remark: as other programs call it, or without
    the sections that it is in. None if there is no such key."""
    plain = name.lower().replace("-", "_")
    keys = keys_of(config_class)
    if plain in keys:
        return plain
    if plain in config_class.other_names:
        return config_class.other_names[plain]
    same = sorted((k for k in keys if k.endswith(f".{plain}")), key=lambda k: k.count("."))
    return same[0] if same else None


def unknown_key(config_class: type[Config], at: str, key: str) -> tuple[str, str | None]:
    """(what to write in the place of an unknown key, the key that was meant).

    Args:
        config_class: of the whole config.
        at: the section that the key stands in, as `optimizer.`, or "".
    """
    other = config_class.other_names.get(key.lower().replace("-", "_"))
    if other is not None:
        return f"{at}{key} is not a known key; here it is {other}", other.split()[0]
    meant = known_as(config_class, key)
    if meant is not None and meant.rpartition(".")[2] == key:
        section = meant.rpartition(".")[0]
        place = f"in the section {section!r}" if section else "at the top, in no section"
        return f"{at}{key} is not a key here; it belongs {place}", meant
    here = [name[len(at) :] for name in keys_of(config_class) if name.startswith(at)]
    here = [name for name in here if "." not in name]
    near = difflib.get_close_matches(key, here, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(here)}"
    return f"{at}{key} is not a known key; {hint}", f"{at}{near[0]}" if near else None


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
