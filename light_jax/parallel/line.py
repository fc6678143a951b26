"""One connection between two processes of a run: signs of life, and messages."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import Any

_LONGEST = 1 << 16  # bytes of a message


class Line:
    """A connected socket. A message is a line of JSON; an empty line is a sign of life."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket, self._rest = connection, b""

    def send(self, words: dict[str, Any] | None = None) -> None:
        """Without waiting: whoever does not read is noticed by its silence."""
        with contextlib.suppress(OSError):
            self.socket.send((json.dumps(words) if words else "").encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """The messages that came.

        Raises:
            OSError: the line is closed, or what came is none.
        """
        data = self.socket.recv(_LONGEST)
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            messages = [json.loads(line) for line in lines if line]
        except (ValueError, RecursionError):
            messages = [None]
        if not data or len(self._rest) > _LONGEST or not all(isinstance(m, dict) for m in messages):
            raise ConnectionError
        return messages


def listen(host: str, port: int) -> socket.socket:
    """`::` is every interface, as JAX has it.

    Raises:
        OSError: another program listens there.
    """
    both = host == "::" and socket.has_dualstack_ipv6()
    host = "" if host == "::" and not both else host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, dualstack_ipv6=both, backlog=4096)
    listener.setblocking(False)
    return listener


def connect(host: str, port: int, seconds: float) -> socket.socket | None:
    """A connection, tried until somebody listens there; None after so many seconds."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            return socket.create_connection((host, port), timeout=left)
        except OSError:
            time.sleep(min(0.2, left))
    return None
