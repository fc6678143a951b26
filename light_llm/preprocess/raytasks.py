"""The parts of a run as tasks of Ray: a program of its own, driven by `cluster`.

It reads a line with the address, connects, and reads another with what to make; it answers in lines
of JSON. Ray prints where it likes, takes the signals of its process and may never answer, so it has
a process to itself, which ends with its parent: with the end of its stdin.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from typing import Any

from light_llm.errors import UserError, one_line
from light_llm.preprocess.config import PreprocessConfig
from light_llm.preprocess.making import make_part
from light_llm.preprocess.part import cores
from light_llm.preprocess.request import request_of

RETRIES = 3
"""How often a part is begun again, where its worker died."""
PATIENCE = 60.0
"""Seconds that a task waits for the lock of its part: Ray may call a worker dead before it is."""
STORE = 100 * 2**20
"""Bytes of the object store of a cluster that this starts: nothing is put there."""
SECONDS_TO_CANCEL = 10.0
SECONDS_TO_END = 10.0
LONGEST = 500
"""Characters of an error of Ray's."""


def make(config: dict[str, Any], part: int, folder: str) -> str | None:
    """The task: make a part, in a worker of Ray. Returns the message of what cannot be done."""
    try:
        os.chdir(folder)  # paths are seen from there
        make_part(request_of(PreprocessConfig.model_validate(config)), part, PATIENCE)
    except UserError as error:
        return str(error)
    except MemoryError:
        return f"part {part}: the memory of {os.uname().nodename} is not enough for it"
    except OSError as error:
        return f"{error.filename} on {os.uname().nodename}: {error.strerror or error}"
    return None


def main() -> None:
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1) as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

        def answer(**line: Any) -> None:
            answers.write(json.dumps(line) + "\n")

        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(lines,), daemon=True).start()
        try:
            address, workers = json.loads(lines.get())
            answer(connected=_connect(address, workers))
            _run(answer, workers, **json.loads(lines.get()))
        except Exception as error:
            answer(failed=one_line(error, LONGEST))
            raise  # its traceback goes to the log


def _connect(address: str, workers: int) -> float:
    """Connect to Ray; returns the most CPUs of a node."""
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address != "ray":
        ray.init(address, **quiet)
    elif os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        cpus = max(cores(), workers)
        here: dict[str, Any] = {
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": STORE,
        }
        ray.init("local", **here, **quiet)
    return max(node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"])


def _read(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os.kill(os.getpid(), signal.SIGTERM)  # Ray's handler ends the cluster that it started
    time.sleep(SECONDS_TO_END)
    os._exit(1)


def _run(answer: Any, workers: int, config: dict[str, Any], parts: list[int], folder: str) -> None:
    """Make parts, and tell of each; the first that cannot be made ends the others."""
    import ray

    task = ray.remote(num_cpus=workers, max_retries=RETRIES)(make)
    running = {task.options(name=f"part {n}").remote(config, n, folder): n for n in parts}
    while running:
        for done in ray.wait(list(running), timeout=1)[0]:
            part = running.pop(done)
            try:
                message = ray.get(done)
                line = {"part": part} if message is None else {"refused": message}
            except ray.exceptions.RayTaskError as error:
                line = {"bug": str(error)}
            except ray.exceptions.RayError as error:
                line = {"lost": part, "reason": one_line(error, LONGEST)}
            answer(**line)
            if "part" not in line:
                for each in running:
                    ray.cancel(each)
                if running:
                    everyone = list(running)
                    ray.wait(everyone, num_returns=len(everyone), timeout=SECONDS_TO_CANCEL)
                return
