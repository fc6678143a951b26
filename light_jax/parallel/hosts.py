"""Several hosts: JAX's runtime, and what all processes do together."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from light_jax.parallel.cluster import VARIABLES, in_cluster
from light_jax.parallel.devices import devices
from light_llm.errors import UserError

Result = TypeVar("Result")

DONE = "done"
PATIENCE_MS = 20 * 60 * 1000  # orbax's own timeout for slow disks

_BIND = "JAX_COORDINATOR_BIND_ADDRESS"


def initialize() -> None:
    """Join the other processes, if the environment says that there are any.

    By JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or as JAX detects SLURM,
    Cloud TPU pods and Kubernetes. Must come before anything that touches a device.

    Process 0 listens on the interface that the coordinator's address names, since whoever reaches
    it can join the run without a password; JAX_COORDINATOR_BIND_ADDRESS names another.
    """
    given = [name for name in VARIABLES if os.environ.get(name)]
    if given:
        missing = [name for name in VARIABLES if name not in given]
        if missing:
            raise UserError(f"{given[0]} is set but {' and '.join(missing)} is not; set all three")
        address, number, process = (os.environ[name] for name in VARIABLES)
        try:
            process_id = int(process)
            jax.distributed.initialize(
                coordinator_address=address,
                num_processes=int(number),
                process_id=process_id,
                coordinator_bind_address=_bind_address(address) if process_id == 0 else None,
            )
        except ValueError as error:
            raise UserError(f"{', '.join(VARIABLES)}: {error}") from None
    elif in_cluster():
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise UserError(
                f"this looks like one of several hosts, but JAX could not find the others "
                f"({error}); set {', '.join(VARIABLES)}"
            ) from None
    devices()  # a platform that is not here is refused before anything else asks for it


def _bind_address(address: str) -> str:
    """Where process 0 listens: the user's choice, or the interface of the coordinator's address.

    Raises:
        UserError: this machine has no such address, as behind a load balancer.
    """
    if given := os.environ.get(_BIND):
        return given
    host, port = _host_and_port(address)
    found, failure = _local_addresses(host)
    if not found:
        raise UserError(
            f"{VARIABLES[0]}={address!r}: process 0 cannot listen there ({failure}); name an "
            f"address of this machine, or the one to listen on with {_BIND}"
        )
    reached = [place for place in found if not _only_here(host, place)]
    if not reached:
        raise UserError(
            f"{VARIABLES[0]}={address!r}: is {found[0]} on this machine, where no other one "
            f"reaches it; give the IP address, or the one to listen on with {_BIND}"
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


def _host_and_port(address: str) -> tuple[str, str]:
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


def is_main() -> bool:
    """Process 0 writes metrics, weights and messages.

    A process that joined no others is asked for no device: there may be none of the kind wanted.
    """
    return not jax.distributed.is_initialized() or jax.process_index() == 0


@contextlib.contextmanager
def announce(name: str) -> Iterator[None]:
    """Report to process 0 how the work inside ended. It runs on any thread: no collective."""
    key = f"light-llm/{name}/{jax.process_index()}"
    try:
        yield
    except BaseException as error:
        _client().key_value_set(key, f"failed: {error}")
        raise
    _client().key_value_set(key, DONE)


def others_done(name: str) -> None:
    """Process 0 waits until all others have announced `name`; on any thread: no collective.

    Raises:
        UserError: one of them failed.
    """
    for process in range(1, jax.process_count()):
        key = f"light-llm/{name}/{process}"
        answer = _client().blocking_key_value_get(key, PATIENCE_MS)
        _client().key_value_delete(key)
        if answer != DONE:
            raise UserError(f"process {process} could not write its part ({answer})")


def _client() -> Any:
    """The coordination service's client. JAX has no public way to it; orbax uses this one too."""
    from jax._src import distributed

    return distributed.global_state.client


class Left(Exception):
    """Leave what is done `together`, without a failure: where one process raises it, all do."""


def together(check: Callable[[], Result]) -> Result:
    """Run `check` on every process; if it fails on one, all stop, and none waits for the others.

    Raises:
        Left: one process raised it, and none failed.
    """
    result: Result | None = None
    error: Exception | None = None
    try:
        result = check()
    except Exception as failure:  # any failure: the others must learn of it; raised again below
        error = failure
    if jax.process_count() > 1:
        ended = 0 if error is None else 1 if isinstance(error, Left) else 2
        worst = multihost_utils.process_allgather(np.int32(ended))
        if ended < 2 and worst.max() == 2:
            error = UserError(f"process {int(worst.argmax())} stopped; its message says why")
        elif worst.max() == 1:
            error = Left()
    if error is not None:
        raise error
    return cast(Result, result)
