"""Each process of a run knows whether the others live, and none waits for one that does not.

Every process keeps a line to process 0, beside JAX's own, on which both sides give a sign of life
several times within `cluster_timeout`. A thread of its own does that: a long compilation, save or
evaluation is no silence. Process 0 notices a process that is silent, gone or failed and tells the
others; each of them notices process 0. Who learns that the run is over while its main thread waits
for what will never come prints one message, which names the process, and exits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from light_jax.parallel import wire
from light_llm.printing import tell

LOST = 4
"""The exit code of a process whose others are gone: start all again."""

REMEDY = "start all processes again (llm-train with --resume auto: checkpoints are intact)"
_BEATS = 20  # signs of life within the timeout
_SILENT = 0.8  # of the timeout: so much silence is an end, so that all end within it
_GRACE = 10.0  # seconds, at most: the main thread may be about to end by itself
_WRITE = 5.0  # seconds for the last message: whoever reads it may have stopped reading


@dataclass
class Peer:
    """Another process, as its line tells."""

    host: str = ""  # the name of its machine; empty before it joined
    heard: float = 0.0  # when it gave the last sign of life
    done: bool = False  # it has ended, well or with `fault`, or was lost
    writer: asyncio.StreamWriter | None = None


class Watch:
    """One process's side of it; `reach` begins it."""

    def __init__(self, timeout: float) -> None:
        self.timeout, self._every = timeout, max(0.05, min(2.0, timeout / _BEATS))
        self.process, self.count, self._service = 0, 1, 0
        self._peers: dict[int, Peer] = {}
        self._code: int | None = None  # of this process, once its part has ended with an error
        self.watches = False
        self._over = threading.Event()  # set when the run's end is known here
        self._parted = threading.Event()  # set when all may leave
        self._waiting = threading.Event()  # the main thread has nothing left to do but to wait
        self._began = time.monotonic()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        threading.Thread(target=self._loop.run_forever, name="light-watch", daemon=True).start()

    # The main thread's side.

    def serve(self, host: str, port: int) -> int:
        """Process 0: listen at the coordinator's address. Returns the port for JAX's service.

        Raises:
            OSError: another program listens there.
        """
        self._service = wire.free_port()
        self._call(wire.listen_in_front(host, port, self._service, self._hear))
        return self._service

    def reach(self, host: str, port: int, process: int, count: int) -> int:
        """Begin to watch. Returns the port of this machine that leads to JAX's service."""
        self.process, self.count, self.watches = process, count, True
        others = range(1, count) if process == 0 else [0]
        self._peers = {other: Peer() for other in others}
        relay = self._service if process == 0 else self._call(wire.relay_to(host, port))
        self._spawn(self._judge_others() if process == 0 else self._talk(host, port))
        return int(relay)

    def failed(self, code: int, why: str) -> None:
        """Tell the others that this process's part has ended with an error."""
        if self._code is None:
            self._code = code
            first = " ".join(why.split())[:300]
            self._call(self._tell({"failed": code, "why": first}))
            if self.process == 0:
                self._call(self._end_others(code, f"{self._name(0)} stopped: {first}"))

    def give_up(self, code: int, why: str) -> None:
        """From any thread: end this process and the others, though some main threads wait."""
        self._call(self._tell({"failed": code, "why": " ".join(why.split())[:300]}))
        self._call(self._end_others(code, why))

    def await_end(self) -> None:
        """After a failure of the connections to the others: wait until it is known whose."""
        self._waiting.set()
        self._over.wait(self.timeout)
        if self._over.is_set():
            time.sleep(_GRACE)  # the thread exits

    def part(self) -> None:
        """Before the process exits: see that no other one waits for it. May exit at once."""
        self._waiting.set()
        if self._code is None:
            self._call(self._tell({"done": True}))
            if self.process == 0:
                self._parted.wait()  # the others live, or they are known not to
            else:
                self._parted.wait(self.timeout if self._over.is_set() else None)
            if not self._over.is_set():
                return
        elif self.process == 0:
            self._parted.wait(self.timeout)
        # JAX would wait for those who are gone, and abort
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(LOST if self._code is None else self._code)

    # The thread's side.

    async def _hear(
        self, hello: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Process 0: all that one process says."""
        about = json.loads(hello)
        process = about["process"]
        peer = self._peers.get(process)
        if peer is None or peer.host:
            await _send(writer, {"over": 2, "why": f"there are two of process {process}"})
            return
        peer.host, peer.heard, peer.writer = about["host"], time.monotonic(), writer
        await _send(writer, {"host": socket.gethostname()})
        while line := await _line(reader):
            peer.heard, said = time.monotonic(), json.loads(line)
            if "failed" in said:
                peer.done = True
                why = f"{self._name(process)} stopped: {said['why']}"
                await self._end_others(said["failed"], why)
            peer.done = peer.done or "done" in said
        peer.writer = None
        if not peer.done and not self._parted.is_set():
            peer.done = True
            await asyncio.sleep(self._every)  # all may be dying of the same signal
            await self._lost(process, "is gone: its connection closed")
        peer.done = True

    async def _judge_others(self) -> None:
        """Process 0: who is silent, and whether all have ended."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(self._every)
            now = time.monotonic()
            if now - last > self.timeout / 2:  # this process itself was stopped
                for peer in self._peers.values():
                    peer.heard = max(peer.heard, now)
            last = now
            await self._tell({})
            absent = [number for number, peer in self._peers.items() if not peer.host]
            if absent and now - self._began > self.timeout:
                await self._end_others(LOST, self._never_came(absent))
            for number, peer in self._peers.items():
                if peer.host and not peer.done and now - peer.heard > _SILENT * self.timeout:
                    peer.done = True
                    await self._lost(number, self._silence(now - peer.heard))
            if all(peer.done for peer in self._peers.values()) and self._waiting.is_set():
                await self._tell({"part": True})
                self._parted.set()

    async def _talk(self, host: str, port: int) -> None:
        """Another process: its line to process 0."""
        zero = self._peers[0]
        where = f"{host}:{port}"
        try:
            async with asyncio.timeout(self.timeout):
                reader, zero.writer = await wire.connect(host, port)
        except TimeoutError:
            self._end(LOST, f"process 0 does not listen at {where} {self._within()}; {REMEDY}")
            return
        hello = {"process": self.process, "host": socket.gethostname()}
        zero.writer.write(wire.HELLO)
        await _send(zero.writer, hello)
        zero.host, zero.heard = where, time.monotonic()
        self._spawn(self._judge_zero())
        while line := await _line(reader):
            zero.heard, said = time.monotonic(), json.loads(line)
            zero.host = said.get("host", zero.host)
            if "over" in said:
                self._end(said["over"], said["why"])
            if "part" in said:
                self._parted.set()
        zero.writer = None
        if not self._parted.is_set():
            await asyncio.sleep(self._every)
            await self._lost(0, "is gone: its connection closed")

    async def _judge_zero(self) -> None:
        zero, last = self._peers[0], time.monotonic()
        while True:
            await self._tell({})
            await asyncio.sleep(self._every)
            now = time.monotonic()
            if now - last > self.timeout / 2:
                zero.heard = max(zero.heard, now)
            last = now
            if now - zero.heard > _SILENT * self.timeout and not self._parted.is_set():
                await self._lost(0, self._silence(now - zero.heard))

    async def _lost(self, process: int, how: str) -> None:
        await self._end_others(LOST, f"{self._name(process)} {how}; {REMEDY}")

    async def _end_others(self, code: int, why: str) -> None:
        """The run is over: whoever still takes part in it is to end, this process included."""
        if self.process == 0:
            await self._tell({"over": code, "why": why})
        self._end(code, why)

    def _end(self, code: int, why: str) -> None:
        if not self._over.is_set():
            self._over.set()
            if self._code is None:
                self._spawn(self._exit(code, why))

    async def _exit(self, code: int, why: str) -> None:
        """Exit, unless the main thread learns of it by itself and ends with its own message."""
        if code != LOST:
            end = time.monotonic() + min(_GRACE, self.timeout / 4)
            while time.monotonic() < end and self._code is None and not self._waiting.is_set():
                await asyncio.sleep(self._every / 2)
        if self._code is not None:
            return
        await asyncio.sleep(self._every)  # what was told to the others reaches them
        threading.Timer(_WRITE, os._exit, [code]).start()
        with contextlib.suppress(Exception):
            tell(f"{Path(sys.argv[0]).name}: {why}")
        os._exit(code)

    async def _tell(self, words: dict[str, Any]) -> None:
        for peer in self._peers.values():
            if peer.writer is not None:
                await _send(peer.writer, words)

    def _name(self, process: int) -> str:
        if process == self.process:
            return f"process {process} ({socket.gethostname()})"
        return f"process {process} ({self._peers[process].host})"

    def _never_came(self, absent: list[int]) -> str:
        some = ", ".join(map(str, absent[:8])) + (", …" if len(absent) > 8 else "")
        which = f"process {some}" if len(absent) == 1 else f"processes {some}"
        return f"{which} of {self.count} did not start {self._within()}; {REMEDY}"

    def _silence(self, seconds: float) -> str:
        return f"gave no sign of life for {seconds:.0f} s {self._within()}"

    def _within(self) -> str:
        return f"(cluster_timeout {self.timeout:g} s)"

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it on the thread. From any thread."""

        def begin() -> None:
            task = self._loop.create_task(work)
            self._tasks.add(task)  # the loop itself would let it be collected
            task.add_done_callback(self._tasks.discard)

        self._loop.call_soon_threadsafe(begin)

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run it on the thread, from another one, and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _send(writer: asyncio.StreamWriter, words: dict[str, Any]) -> None:
    """Without waiting: whoever does not read is noticed by its silence."""
    if writer.transport.is_closing():
        return
    with contextlib.suppress(OSError, RuntimeError):
        writer.write(json.dumps(words).encode() + b"\n")


async def _line(reader: asyncio.StreamReader) -> bytes:
    """The next line; empty at the end, however it came."""
    try:
        return await reader.readline()
    except (OSError, ValueError):
        return b""
