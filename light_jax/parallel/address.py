"""The coordinator's address: where process 0 of several listens, and the others find it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket

from light_jax.parallel.cluster import VARIABLES
from light_llm.errors import UserError

BIND = "JAX_COORDINATOR_BIND_ADDRESS"


def bind_address(address: str) -> str:
    """Where process 0 listens: the user's choice, or the interface of the coordinator's address.

    Raises:
        UserError: this machine has no such address, as behind a load balancer.
    """
    if given := os.environ.get(BIND):
        return given
    host, port = host_and_port(address)
    found, failure = _local_addresses(host)
    if not found:
        raise UserError(
            f"{VARIABLES[0]}={address!r}: process 0 cannot listen there ({failure}); name an "
            f"address of this machine, or the one to listen on with {BIND}"
        )
    reached = [place for place in found if not _only_here(host, place)]
    if not reached:
        raise UserError(
            f"{VARIABLES[0]}={address!r}: is {found[0]} on this machine, where no other one "
            f"reaches it; give the IP address, or the one to listen on with {BIND}"
        )
    return f"[{reached[0]}]:{port}" if ":" in reached[0] else f"{reached[0]}:{port}"


def _local_addresses(host: str) -> tuple[list[str], Exception | None]:
    """The addresses of a name on which this machine can listen, or why it cannot listen."""
    found: list[str] = []
    failure: Exception | None = None
    try:
        for family, kind, protocol, _, place in socket.getaddrinfo(
            host, 0, type=socket.SOCK_STREAM
        ):
            try:
                with socket.socket(family, kind, protocol) as probe:
                    probe.bind(place)
                found.append(str(place[0]))
            except OSError as error:
                failure = error
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that DNS cannot have
        failure = error
    return found, failure


def host_and_port(address: str) -> tuple[str, str]:
    """The two parts of `HOST:PORT` or `[IPV6]:PORT`.

    Raises:
        UserError: it is neither.
    """
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""  # a bare IPv6 address has no visible port
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise UserError(
            f"{VARIABLES[0]}={address!r} must be HOST:PORT, and around an IPv6 address [ ]"
        )
    return host, port


def _only_here(host: str, numeric: str) -> bool:
    """Whether /etc/hosts gives this machine's own name as loopback, as Debian does.

    To the other machines the name means an interface that process 0 would not listen on. Who
    writes localhost or an address means it.
    """
    if not ipaddress.ip_address(numeric.partition("%")[0]).is_loopback:
        return False
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return False
    return host.rstrip(".").rpartition(".")[2] != "localhost" and host != "localhost.localdomain"
