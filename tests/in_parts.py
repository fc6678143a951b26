"""Runs of llm-preprocess in parts, of the files that the fixture `kinds` makes."""

from __future__ import annotations

from pathlib import Path

from light_llm.preprocess import PreprocessConfig
from light_llm.preprocess.making import Made, make_part
from light_llm.preprocess.request import request_of


class Killed(BaseException):
    """Abrupt, like an unhandled signal."""


def asked(output: str, parts: int = 3, **options: object) -> PreprocessConfig:
    options = {"tokenizer": "char", "shard_size": 20_000, "val_fraction": 0.1} | options
    return PreprocessConfig.model_validate(
        {"input": "in", "output": output, "parts": parts, "workers": 1} | options
    )


def make(output: str, parts: int, number: int, **options: object) -> Made:
    return make_part(request_of(asked(output, parts, **options)), number)


def visible(folder: str) -> list[str]:
    return [path.name for path in Path(folder).iterdir() if path.name[0] != "."]
