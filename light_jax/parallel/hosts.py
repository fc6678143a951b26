"""Several hosts: JAX's runtime, and what all processes do together."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from light_jax.config import CLUSTER_TIMEOUT
from light_jax.parallel.address import BIND, bind_address, host_and_port
from light_jax.parallel.cluster import VARIABLES, in_cluster
from light_jax.parallel.devices import devices
from light_jax.parallel.watch import Watch
from light_llm import exits
from light_llm.errors import NonFinite, UserError, is_out_of_memory, one_line

Result = TypeVar("Result")

DONE = "done"
PATIENCE_MS = 20 * 60 * 1000  # orbax's own timeout for slow disks

_SAID = 500  # bytes of a message to the other processes

_watch: Watch | None = None  # of a process that joined others


def initialize(timeout: float = CLUSTER_TIMEOUT) -> None:
    """Join the other processes, if the environment says that there are any.

    From then on this process exits, with one message and code 4, when another one has not started
    after `timeout` seconds, is gone, or gives no sign of life for so long
    (light_jax.parallel.watch).

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
            bind = bind_address(address) if process_id == 0 else None
            _join(timeout, address, int(number), process_id, bind)
        except ValueError as error:
            raise UserError(f"{', '.join(VARIABLES)}: {error}") from None
    elif in_cluster():
        try:
            _join(timeout, *_detected(timeout))
        except ValueError as error:
            raise UserError(
                f"this looks like one of several hosts, but JAX could not find the others "
                f"({error}); set {', '.join(VARIABLES)}"
            ) from None
    devices()  # a platform that is not here is refused before anything else asks for it


def _detected(timeout: float) -> tuple[str, int, int, str | None]:
    """The coordinator's address, how many processes there are, which one this is, and where
    process 0 listens, as JAX finds them.

    Raises:
        ValueError: it does not.
    """
    from jax._src.clusters import ClusterEnv  # it has no public name

    address, count, process, _ = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, math.ceil(timeout)
    )
    if address is None or count is None or process is None:
        raise ValueError("it knows no such cluster")
    bind = os.environ.get(BIND) or f"[::]:{host_and_port(address)[1]}"
    return address, count, process, bind if process == 0 else None


def _join(timeout: float, address: str, count: int, process: int, bind: str | None) -> None:
    """Meet the others, and then jax.distributed.initialize, which would abort for one that is
    missing. Its patience is longer than ours for the same reason.

    Args:
        bind: where process 0 listens; None for the others.
    """
    global _watch
    if count > 1 and 0 <= process < count:
        watch = Watch(process, count, timeout)
        host, port = host_and_port(bind or address)
        try:
            watch.meet(host, int(port))
        except OSError as error:
            raise UserError(
                f"process 0 cannot listen at {bind} ({error.strerror or error}); name another port "
                f"in {VARIABLES[0]}"
            ) from None
        _watch = watch
    longer = math.ceil(2 * timeout) + 60
    jax.distributed.initialize(
        coordinator_address=address,
        num_processes=count,
        process_id=process,
        coordinator_bind_address=bind,
        initialization_timeout=longer,
        heartbeat_timeout_seconds=longer,
        shutdown_timeout_seconds=longer,
    )
    if _watch is not None:
        exits.when_over(_watch.finished)
        atexit.register(_watch.leave)  # before JAX's own, which was registered earlier


@contextlib.contextmanager
def taking_part() -> Iterator[None]:
    """This process's part in what several do: the others learn of an error that ends it."""
    try:
        yield
    except BaseException as error:
        if _watch is not None:
            if exit_code(error) == 1:
                _watch.await_end(3)  # the reason may be another process, which will be named
            tell_others(exit_code(error), one_line(error))
        raise


def tell_others(code: int, why: str) -> None:
    """End the other processes with this code and reason; this one is about to end by itself."""
    if _watch is not None:
        _watch.failed(code, why)


def exit_code(error: BaseException) -> int:
    """As light_llm.cli.runner has them."""
    if isinstance(error, NonFinite):
        return 3
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, UserError | OSError) or is_out_of_memory(error) else 1


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
        client().key_value_set(key, f"failed: {error}")
        raise
    client().key_value_set(key, DONE)


def others_done(name: str) -> None:
    """Process 0 waits until all others have announced `name`; on any thread: no collective.

    Raises:
        UserError: one of them failed.
    """
    for process in range(1, jax.process_count()):
        key = f"light-llm/{name}/{process}"
        answer = client().blocking_key_value_get(key, PATIENCE_MS)
        client().key_value_delete(key)
        if answer != DONE:
            raise UserError(f"process {process} could not write its part ({answer})")


def client() -> Any:
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
        error = _worst(error)
    if error is not None:
        raise error
    return cast(Result, result)


def _worst(error: Exception | None) -> Exception | None:
    """This process's error, or another one's, if that is worse."""
    ended = 0 if error is None else 1 if isinstance(error, Left) else 2
    name = f"process {jax.process_index()} ({socket.gethostname()})"
    said = f"{name} stopped: {one_line(error)}" if ended == 2 and error is not None else ""
    words = bytes([ended]) + said.encode()[:_SAID]
    try:
        told = multihost_utils.process_allgather(
            np.frombuffer(words.ljust(1 + _SAID, b"\0"), np.uint8)
        )
    except Exception:  # another one is gone: its error is not worse than one from here
        if error is None:
            raise
        return error
    worst = int(told[:, 0].argmax())
    if told[worst, 0] == 2 and ended < 2:
        return UserError(bytes(told[worst, 1:]).rstrip(b"\0").decode(errors="ignore"))
    return Left() if told[worst, 0] == 1 else error
