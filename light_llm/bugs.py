"""What is said and kept of an error that nobody foresaw: a bug of this program."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
import traceback
from importlib import metadata
from pathlib import Path

from light_llm import __version__
from light_llm.errors import one_line
from light_llm.printing import printable, tell

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch")

_folder: Path | None = None


def keep_tracebacks_in(folder: Path) -> None:
    """From now on `report` writes a traceback into this folder; until then it prints it."""
    global _folder
    _folder = folder


def report(name: str, error: Exception) -> None:
    """Say on stderr that the command `name` met a bug, and what to report.

    The traceback is kept or printed, since after hours of a run it cannot be had again.
    """
    trace = printable("".join(traceback.format_exception(error)))
    kept = None if _folder is None else _keep(_folder, trace)
    what = f"{name}: this is a bug: {type(error).__name__}: {one_line(error, 200)}"
    with contextlib.suppress(OSError):  # nobody reads it
        if kept is not None:
            tell(
                f"{what}; please report it with the file {kept}: {_where_to_report()}; "
                "if there is a checkpoint, it is as it was, and --resume auto continues from it"
            )
            return
        print(trace, end="", file=sys.stderr)
        tell(
            f"{what}\nPlease report it, with the lines above and what "
            f"`{name.split()[0]} --version` prints: {_where_to_report()}"
        )


def _keep(folder: Path, trace: str) -> Path | None:
    """Write the traceback and the versions into a new file; None if that fails."""
    path = folder / f"bug-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    versions = [f"light-llm-jax {__version__}", f"python {platform.python_version()}"]
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    text = "\n".join(
        [" ".join(map(printable, sys.argv)), *versions, platform.platform(), "", trace]
    )
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        return None
    return path


def _where_to_report() -> str:
    """The page of issues that the package names, or where else to look."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        for line in metadata.metadata("light-llm-jax").get_all("Project-URL") or ():
            label, _, url = line.partition(", ")
            if "issue" in label.lower() or "bug" in label.lower():
                return url
    return "an issue of the repository that light-llm-jax was installed from"
