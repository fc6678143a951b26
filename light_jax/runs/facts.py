"""What a page says of a run besides its curves: settings, parameters, data, devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from conversion.mapping import table
from light_jax.config import TrainingConfig
from light_jax.sources import Taken
from light_llm.configtext import parse_mapping


@dataclass(frozen=True)
class Setting:
    key: str  # dotted
    value: Any
    default: Any
    changed: bool  # given in the config, and not the default


@dataclass(frozen=True)
class Parameter:
    name: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def part(self) -> str:
        """The part of the model that it belongs to."""
        for part, word in (("norm", "norm"), ("attn", "attention"), ("ffn", "ffn")):
            if part in self.name:
                return word
        return "embedding" if "emb" in self.name else "head"


def of_no_source(windows: int) -> list[Taken]:
    """What windows take where the data are no mixture."""
    return []


@dataclass(frozen=True)
class Facts:
    """What does not change while a run goes on."""

    name: str
    num_steps: int
    tokens_per_step: int
    windows_per_step: int
    windows: int  # in an epoch of the training data; 0 where each source has its own
    settings: tuple[Setting, ...]
    parameters: tuple[Parameter, ...]
    data: tuple[tuple[str, str], ...]
    """What the data are: a label and its text."""
    hardware: tuple[tuple[str, str], ...]
    taken: Callable[[int], list[Taken]] = of_no_source
    """What the first windows take of each source of a mixture."""


def flat(values: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a config by its dotted name."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{at}{name}.")
        else:
            yield f"{at}{name}", value


def settings_of(cfg: TrainingConfig) -> tuple[Setting, ...]:
    """All settings: first those that were given and are not the defaults, in the config's order."""
    plain = TrainingConfig(train_data="unknown").model_dump(mode="json")
    defaults = dict(flat(plain)) | {"train_data": None}  # must be given
    text = cfg.source.text.decode() or "{}"
    given = {key for key, _ in flat(parse_mapping(text, "the config"))}
    found = []
    for key, value in flat(cfg.model_dump(mode="json")):
        default = defaults.get(key)
        found.append(Setting(key, value, default, key in given and value != default))
    return tuple(sorted(found, key=lambda setting: not setting.changed))


def parameters_of(cfg: TrainingConfig) -> tuple[Parameter, ...]:
    """Names and shapes as in the weights file, a tied head counted once."""
    return tuple(Parameter(entry.key, entry.shape) for entry in table(cfg.model))
