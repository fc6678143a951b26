"""Whether all processes of a run were started with the same config, shards and checkpoints."""

from __future__ import annotations

import json
import socket
from typing import Any

import jax

from light_jax.parallel.hosts import PATIENCE_MS, client, is_main
from light_llm.errors import UserError


def check_alike(name: str, here: dict[str, Any]) -> None:
    """Check that this process has what process 0 has; every process calls it, inside `together`.

    Args:
        name: of the comparison; each is made once.
        here: plain values by what they are called.

    Raises:
        UserError: it has not; names this process, its machine and what differs.
    """
    if jax.process_count() == 1:
        return
    key, text = f"light-llm/alike/{name}", json.dumps(here)
    if is_main():
        client().key_value_set(key, text, allow_overwrite=True)
        return
    there = json.loads(client().blocking_key_value_get(key, PATIENCE_MS))
    mine = json.loads(text)
    differ = [what for what in {**there, **mine} if there.get(what) != mine.get(what)]
    if differ:
        lines = [
            f"{what}={_short(mine, what)} here, {_short(there, what)} there" for what in differ
        ]
        raise UserError(
            f"process {jax.process_index()} ({socket.gethostname()}) differs from process 0: "
            f"{'; '.join(lines[:8])}; start all processes with the same config, shards and versions"
        )


def _short(values: dict[str, Any], what: str) -> str:
    text = json.dumps(values[what]) if what in values else "nothing"
    return text if len(text) <= 60 else f"{text[:57]}…"
