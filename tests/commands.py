"""The console scripts of the project, and the function behind each."""

from __future__ import annotations

import importlib
from collections.abc import Callable

COMMANDS = [
    *("llm-train", "llm-data", "llm-parity", "llm-convert", "llm-run", "llm-preprocess"),
    *("llm-eval", "llm-runs"),
]


def module_of(script: str):
    package = "light_llm" if script in ("llm-run", "llm-preprocess") else "light_jax"
    return importlib.import_module(f"{package}.cli.{script.removeprefix('llm-')}")


def main_of(script: str) -> Callable[[], None]:
    return module_of(script).main
