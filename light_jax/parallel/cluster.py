"""Whether this process is one of several of a run, as the environment says. Imports no JAX."""

from __future__ import annotations

import os

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def one_of_several() -> bool:
    """Whether there are others to join, or the variables that say so are incomplete."""
    return any(os.environ.get(name) for name in VARIABLES) or in_cluster()


def in_cluster() -> bool:
    """More than one task of a cluster that JAX knows how to join by itself."""
    slurm_tasks = os.environ.get("SLURM_NTASKS", "1") if "SLURM_PROCID" in os.environ else "1"
    tpu_workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    kubernetes_jobs = os.environ.get("JOB_COMPLETION_INDEX") or os.environ.get("JOBSET_NAME")
    return int(slurm_tasks) > 1 or len(tpu_workers) > 1 or bool(kubernetes_jobs)
