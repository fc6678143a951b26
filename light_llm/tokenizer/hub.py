"""Whether Hugging Face can be reached, asked quickly: its own libraries try for a minute."""

from __future__ import annotations

SECONDS = 5.0


def reachable() -> bool:
    """Whether the hub answers, with whatever status. Proxies and HF_ENDPOINT are respected."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # no name, no route, no answer; the class depends on the hub's HTTP client
        return False
    return True
