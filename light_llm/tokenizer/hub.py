"""Whether the Hugging Face hub can be reached, and how to use its libraries offline."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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
