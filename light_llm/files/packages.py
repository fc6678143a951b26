"""The packages that stores need, and what is said where one cannot be imported."""

from __future__ import annotations

from light_llm.errors import UserError, one_line

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}


def missing_package(scheme: str, error: ImportError) -> UserError:
    """Which module could not be imported: the store's package, or one that this needs."""
    package = PACKAGES.get(scheme, "fsspec")
    while isinstance(error.__cause__, ImportError):  # fsspec hides it behind its own
        error = error.__cause__
    module = (error.name or "").partition(".")[0]
    if module in ("", package, "fsspec") and isinstance(error, ModuleNotFoundError):
        fault = "which is not installed"
    else:
        named = f" of {module}" if module not in ("", package) else ""
        fault = f"which is here, but the import{named} failed ({one_line(error, 200)})"
    return UserError(f"{scheme}:// needs {package}, {fault}: pip install 'light-llm-jax[remote]'")
