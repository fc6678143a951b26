"""Several hosts: JAX's own runtime, and the few things that all processes do together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from light_llm.errors import UserError

Result = TypeVar("Result")

DONE = "done"
PATIENCE_MS = 20 * 60 * 1000  # orbax's own patience with slow disks

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize() -> None:
    """Join the other processes, if the environment says that there are any.

    By JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or as JAX detects SLURM,
    Cloud TPU pods and Kubernetes. Must come before anything that touches a device.
    """
    given = [name for name in _VARIABLES if os.environ.get(name)]
    if given:
        missing = [name for name in _VARIABLES if name not in given]
        if missing:
            raise UserError(f"{given[0]} is set but {' and '.join(missing)} is not; set all three")
        try:
            jax.distributed.initialize(
                coordinator_address=os.environ["JAX_COORDINATOR_ADDRESS"],
                num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
                process_id=int(os.environ["JAX_PROCESS_ID"]),
            )
        except ValueError as error:
            raise UserError(f"{', '.join(_VARIABLES)}: {error}") from None
    elif _in_cluster():
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise UserError(
                f"this looks like one of several hosts, but JAX could not find the others "
                f"({error}); set {', '.join(_VARIABLES)}"
            ) from None


def _in_cluster() -> bool:
    """More than one task of a cluster that JAX knows how to join by itself."""
    slurm_tasks = os.environ.get("SLURM_NTASKS", "1") if "SLURM_PROCID" in os.environ else "1"
    tpu_workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    kubernetes_jobs = os.environ.get("JOB_COMPLETION_INDEX") or os.environ.get("JOBSET_NAME")
    return int(slurm_tasks) > 1 or len(tpu_workers) > 1 or bool(kubernetes_jobs)


def is_main() -> bool:
    """Process 0 writes metrics, weights and messages."""
    return jax.process_index() == 0


@contextlib.contextmanager
def announce(name: str) -> Iterator[None]:
    """Let process 0 know how what is done inside ended. On any thread: no collective."""
    key = f"light-llm/{name}/{jax.process_index()}"
    try:
        yield
    except BaseException as error:
        _client().key_value_set(key, f"failed: {error}")
        raise
    _client().key_value_set(key, DONE)


def others_done(name: str) -> None:
    """Process 0 waits until all others have announced `name`. On any thread: no collective.

    Raises:
        UserError: one of them failed.
    """
    for process in range(1, jax.process_count()):
        key = f"light-llm/{name}/{process}"
        told = _client().blocking_key_value_get(key, PATIENCE_MS)
        _client().key_value_delete(key)
        if told != DONE:
            raise UserError(f"process {process} could not write its part ({told})")


def _client() -> Any:
    """The coordination service's: JAX has no public way to it, and orbax takes this one too."""
    from jax._src import distributed

    return distributed.global_state.client


def together(check: Callable[[], Result]) -> Result:
    """Run `check` on every process; if it fails on one, all stop, and none waits for the others."""
    result: Result | None = None
    error: Exception | None = None
    try:
        result = check()
    except Exception as failure:  # whatever it is, the others must hear of it; raised below
        error = failure
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.int32(error is not None))
        if error is None and failed.any():
            error = UserError(f"process {int(failed.argmax())} stopped; its message says why")
    if error is not None:
        raise error
    return cast(Result, result)
