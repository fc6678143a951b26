"""The sections of a TrainingConfig that are not the model: optimizer, schedule and mesh."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from light_llm.configfile import Config, derived
from light_llm.models.transformer.config import PositiveFloat

NonNegative = Annotated[int, Field(ge=0, lt=2**31)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class OptimizerConfig(Config):
    type: Literal["adamw", "adam", "sgd", "muon"] = "adamw"
    lr: PositiveFloat = 3e-4
    weight_decay: NonNegativeFloat = 0.1
    beta1: Beta = 0.9
    beta2: Beta = 0.95
    eps: PositiveFloat = 1e-8
    muon_momentum: Beta = 0.95
    muon_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    grad_clip: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def _keys_of_muon(self) -> Self:
        for key in ("muon_momentum", "muon_dtype") if self.type != "muon" else ():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key}={getattr(self, key)!r} is for type='muon', and type is {self.type!r}; "
                    "remove it, or change type"
                )
        return self


class SchedulerConfig(Config):
    type: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup_steps: NonNegative = derived()
    """100; for wsd a tenth of num_steps. TrainingConfig sets it."""
    min_lr_ratio: Fraction = 0.1


class MeshConfig(Config):
    """Devices along each axis; -1 takes the rest."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    @field_validator("data", "fsdp", "tensor")
    @classmethod
    def _size(cls, value: int) -> int:
        if value != -1 and value < 1:
            raise ValueError("must be 1 or more, or -1 for the devices that remain")
        return value

    @model_validator(mode="after")
    def _one_rest(self) -> Self:
        if [self.data, self.fsdp, self.tensor].count(-1) > 1:
            raise ValueError(
                f"data={self.data}, fsdp={self.fsdp}, tensor={self.tensor}: only one axis can be -1"
            )
        return self
