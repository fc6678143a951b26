"""What the commands that write one file for another program share."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from light_llm.errors import UserError
from light_llm.files import given


def check_packages(command: str, extra: str, *packages: str) -> None:
    """
    Raises:
        UserError: a package that the command needs is not installed.
    """
    missing = [name for name in packages if not _installed(name)]
    if missing:
        raise UserError(
            f"{command} needs {', '.join(missing)}; pip install 'light-llm-jax[{extra}]'"
        )


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # a module without a spec
        return False


def check_output(out: Path, ending: str, overwrite: bool) -> None:
    """
    Raises:
        UserError: `out` does not end in `ending`, its folder is not there, or something is in its
            place that is not a file, or that is one and `overwrite` is false.
    """
    if out.suffix != ending:
        raise UserError(f"{out}: the output must end in {ending}; name it OUT{ending}")
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}; make it, or write elsewhere")
    if not os.path.lexists(out):
        return
    if (kind := given.kind_of(out)) != "a file":
        raise UserError(f"{out}: is {kind}, which is not replaced; move it away or write elsewhere")
    if not overwrite:
        raise UserError(f"{out}: is there already; replace it with --overwrite")


def size_of(path: Path) -> str:
    """The size of a file for a person, `1.2 MB`."""
    return f"{path.stat().st_size / 1e6:,.1f} MB"
