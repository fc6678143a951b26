"""Paths as a user writes them: `~` and environment variables."""

from __future__ import annotations

import os
import re
from pathlib import Path

# $NAME, ${NAME} and $$; of what begins with ${ and is neither, all of it
_VARIABLE = re.compile(r"\$(?:\$|([A-Za-z_]\w*)|\{([^}]*)\}?)")
_NAME = re.compile(r"[A-Za-z_]\w*")


def expanded(text: str) -> str:
    """A path with `$NAME` and `${NAME}` replaced by their values, and then a leading `~` or
    `~user` by a home folder. `$$` is a dollar sign.

    Raises:
        ValueError: a variable is not set, or is empty; nobody has this home folder. The message
            goes on from the path.
    """
    return with_home(_VARIABLE.sub(_value, text))


def with_home(text: str) -> str:
    """A path with a leading `~` or `~user` replaced by a home folder. A file of this very name is
    taken as it is.

    Raises:
        ValueError: nobody has this home folder. The message goes on from the path.
    """
    path = os.path.expanduser(text)
    if path.startswith("~") and not os.path.lexists(path):
        user = path.partition("/")[0]
        raise ValueError(f"names the home folder of {user[1:]!r}, who is not known here")
    return path


def _value(found: re.Match[str]) -> str:
    if found[0] == "$$":
        return "$"
    name = found[1] or found[2]
    if not _NAME.fullmatch(name) or (found[2] is not None and not found[0].endswith("}")):
        raise ValueError(
            f"has {found[0]}, and only $NAME and ${{NAME}} are replaced; write $$ for a dollar sign"
        )
    value = os.environ.get(name, "")
    if not value:
        state = "empty" if name in os.environ else "not set"
        raise ValueError(
            f"needs the environment variable {name}, which is {state}; set it, or write the path "
            "out ($$ is a dollar sign)"
        )
    return value


def user_cache() -> Path | None:
    """The user's folder for caches, as the XDG base directory specification has it."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):
        return Path(named)
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # no HOME, and no such user
        return None
