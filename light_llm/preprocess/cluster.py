"""--cluster: the parts of a run as tasks of Ray. This process prepares, watches and publishes."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from light_llm.errors import UserError
from light_llm.preprocess.config import PreprocessConfig
from light_llm.preprocess.journal import Journal
from light_llm.preprocess.notices import notice
from light_llm.preprocess.output import STAGE
from light_llm.preprocess.parts import finish, prepare
from light_llm.preprocess.pipeline import summary_of_output
from light_llm.preprocess.plan import folder_of
from light_llm.preprocess.progress import Progress
from light_llm.preprocess.request import NAMES, request_of
from light_llm.preprocess.stage import JOURNAL
from light_llm.preprocess.summary import Summary
from light_llm.preprocess.watch import Together

PROGRAM = "from light_llm.preprocess.raytasks import main; main()"
ANSWER_SECONDS = 60.0
"""What a cluster has to answer. Ray's clients give up after 30 s; one that answers may then begin a
process for this session, which takes its time."""
START_SECONDS = 180.0
"""What a cluster on this machine has to start."""
PROBE_SECONDS = 10.0
END_SECONDS = 10.0, 1.0
"""What Ray has to end, at the end of a run and where one is stopped."""
CONTINUES = "what is made is kept, and the same command continues"


def on_cluster(config: PreprocessConfig) -> Summary:
    """Prepare here, make the parts on the cluster, and finish here.

    Raises:
        UserError: Ray is not installed or does not answer; or as the steps.
    """
    assert config.cluster is not None
    _check_installed(config.cluster)
    address = config.cluster if config.cluster != "ray" else os.environ.get("RAY_ADDRESS", "")
    _check_listens(address)
    request = request_of(config)
    workers = config.workers or 1
    with _connected(config.cluster, address, workers) as ray:
        plan = prepare(request)
        if plan is None:
            return summary_of_output(config, NAMES, [request.corpus])
        stage = config.output.absolute() / STAGE
        parts = [
            part
            for part in range(len(plan.parts))
            if config.overwrite or not _is_done(folder_of(stage, part))
        ]
        if parts:
            own = config.model_copy(update={"workers": workers, "cluster": None})
            folder = os.getcwd()
            ray.ask({"config": own.model_dump(mode="json"), "parts": parts, "folder": folder})
            with Progress(f"making {config.parts} parts") as progress:
                _watch(ray, Together(stage, plan, parts), progress, parts)
    return finish(request)


def _is_done(folder: Path) -> bool:
    return any(part.done for part in Journal(folder / JOURNAL).parts.values())


def _check_installed(address: str) -> None:
    wanted = ["ray"] if address == "ray" else ["ray", "grpc"]  # Ray's clients speak gRPC
    if any(importlib.util.find_spec(name) is None for name in wanted):
        raise UserError(f"--cluster {address} needs Ray; pip install 'light-llm-jax[ray]'")


def _check_listens(address: str) -> None:
    """
    Raises:
        UserError: nothing listens at HOST:PORT, with ray:// before it or without.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        try:
            host = host.removeprefix("[").removesuffix("]")
            socket.create_connection((host, int(port)), PROBE_SECONDS).close()
        except OSError as error:
            raise UserError(
                f"--cluster: Ray does not listen at {address} ({error.strerror or error}); check "
                "the address (`ray status` on its head node), and that this machine reaches it"
            ) from None


class _Ray:
    """The program that holds the connection to Ray."""

    def __init__(self, process: subprocess.Popen[str], log: BinaryIO):
        self.process = process
        self._log = log
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def ask(self, line: Any) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `answer` tells why it is gone
            self.process.stdin.write(json.dumps(line) + "\n")
            self.process.stdin.flush()

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """The next line, with `failed` if Ray did, or the program ended; None: there is none within
        `seconds`."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return None
        found: dict[str, Any] = json.loads(line) if line else {"failed": self._last_words()}
        return found

    def end(self, seconds: float) -> None:
        """End the program, and what is left of a cluster that it started.

        Args:
            seconds: what it has to do so itself.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):  # it did not read its input
            self.process.stdin.close()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self._reader.join()  # it holds the pipe
            self.process.stdout.close()

    def _last_words(self) -> str:
        """The last line that the program or Ray wrote."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1] if said else f"its process ended with code {self.process.wait()}"


@contextlib.contextmanager
def _connected(cluster: str, address: str, workers: int) -> Iterator[_Ray]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd="/",  # Ray's workers look for modules where its driver began
            env={"RAY_USAGE_STATS_ENABLED": "0"} | os.environ,
            process_group=0,  # Ctrl-C is for this process
        )
        ray = _Ray(process, log)
        try:
            with Progress("connecting to Ray"):
                ray.ask([cluster, workers])
                seconds = ANSWER_SECONDS if address else START_SECONDS
                answer = ray.answer(seconds)
            if answer is None or "failed" in answer:
                where = f" at {address}" if address else ""
                reason = f"within {seconds:.0f} s" if answer is None else f"({answer['failed']})"
                raise UserError(
                    f"--cluster {cluster}: Ray{where} does not answer {reason}; check it with "
                    "`ray status` on its head node"
                )
            if answer["connected"] < workers:
                notice(
                    f"no node of Ray has {workers} CPUs for the --workers of a part (the largest "
                    f"has {answer['connected']:.0f}), so the parts wait for one"
                )
            yield ray
        except BaseException:
            ray.end(END_SECONDS[1])
            raise
        ray.end(END_SECONDS[0])


def _watch(ray: _Ray, together: Together, progress: Progress, parts: Sequence[int]) -> None:
    """Show the progress of all parts, until these are made.

    Raises:
        UserError: one cannot be made.
    """
    waiting = set(parts)
    before = together.now()
    looked = time.monotonic()

    def show() -> None:
        now = together.now()
        progress.documents = now.documents - before.documents
        progress.tokens = now.tokens - before.tokens
        progress.share = now.share

    while waiting:
        answer = ray.answer(seconds=1.0)
        if time.monotonic() - looked > 1:
            together.look()
            show()
            looked = time.monotonic()
        if answer is None:
            continue
        if "failed" in answer:
            raise UserError(f"--cluster: Ray failed: {answer['failed']}; {CONTINUES}")
        if "bug" in answer:
            raise RuntimeError(f"in a worker of Ray:\n{answer['bug']}")
        if "lost" in answer:
            raise UserError(
                f"part {answer['lost']}: its worker of Ray died again and again "
                f"({answer['reason']}); if memory is short, fewer --workers need less. {CONTINUES}"
            )
        if "refused" in answer:
            raise UserError(answer["refused"])
        waiting.discard(answer["part"])
        together.end(answer["part"])
    show()
