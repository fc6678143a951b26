"""Importing late: public names of a package when they are first used, a framework in one go."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Around the import of a framework. Its objects stay, and the garbage collector would look at
    them again and again.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def public(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package whose names live in its modules.

    So torch or jax is imported only when a name that needs it is used.

    Args:
        package: its `__name__`.
        homes: the full name of the module that holds each public name; PACKAGE.NAME for a name
            that is a module itself.
    """

    def get(name: str) -> Any:
        if name in homes:
            home = import_module(homes[name])
            return home if homes[name] == f"{package}.{name}" else getattr(home, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names
