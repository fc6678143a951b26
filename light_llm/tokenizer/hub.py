"""Whether the Hugging Face hub can be reached, its libraries offline, and links of its cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from light_llm.errors import UserError
from light_llm.files import given

SECONDS = 5.0


def reachable() -> bool:
    """Whether the hub answers, with any status. Proxies and HF_ENDPOINT are respected.

    The timeout is short: the hub's own libraries try for a minute.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # no name, no route, no answer; the class depends on the hub's HTTP client
        return False
    return True


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Around a hub library that reads local files: it sends the hub no request.

    Its argument for local files stops downloads, but not a request for its statistics.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def check_link(path: Path, folder: Path) -> None:
    """Refuse a link that leads out of a tokenizer's folder: its content would be copied and shared.

    The hub's own cache is made of links, so those into it may stay.
    """
    target = given.leads_out(path, folder) if path.is_symlink() else None
    if target is None:
        return
    from huggingface_hub.constants import HF_HUB_CACHE

    in_cache = target.is_relative_to(Path(HF_HUB_CACHE).resolve())
    if not in_cache and target.parent != _blobs(folder.resolve()):
        raise UserError(
            f"{path}: is a link to {target}, outside the tokenizer's folder; put the file itself "
            "there, or remove the link"
        )


def _blobs(folder: Path) -> Path | None:
    """Where the files of a snapshot lie in a cache of the hub, wherever that cache is.

    The layout is models--NAME/snapshots/COMMIT/FILE, a link to models--NAME/blobs/DIGEST.
    """
    model = folder.parent.parent
    is_snapshot = folder.parent.name == "snapshots" and model.name.startswith("models--")
    return model / "blobs" if is_snapshot else None
