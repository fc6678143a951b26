"""Each process of a run knows whether the others live, so that none waits for one that does not.

Every process keeps a line (a TCP connection) to process 0, made before JAX's own, on which both
sides give a sign of life every second. A thread does that: a long compilation, save or evaluation
is no silence. Process 0 notices a process that is gone, silent or failed and tells the others; they
notice process 0. Whoever learns that the run is over prints one message, which names the process,
and exits: its main thread may be waiting inside JAX for what never comes.

JAX's traffic has connections of its own. Nothing here may stand in their way: JAX's agreement on
the last step waits for the coordinator with the interpreter locked, so no Python would run.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from light_jax.parallel.line import Line, connect, listen
from light_llm.printing import tell_last

LOST = 4
"""The exit code of a process whose others are gone: start all again."""

GRACE = 5.0
"""Seconds that the main thread has to end by itself, with its own message, after an error
elsewhere."""

_REMEDY = "start all processes again (llm-train with --resume auto: checkpoints are intact)"
_SILENT = 0.9  # of the timeout: so much silence is an end, so that all end within it
_LEAVING = 3.0  # seconds in which the others close their lines, at the end
_SHUTDOWN = 20.0  # seconds for the end of JAX and of the interpreter, once all have finished
_WRITE = 5.0  # seconds for the last message: whoever reads it may have stopped reading


@dataclass
class Peer:
    """Another process, as its line tells."""

    number: int
    host: str = ""  # the name of its machine; empty before it joined
    line: Line | None = None
    heard: float = 0.0  # when it gave the last sign of life
    done: bool = False  # it ends, or is lost; a closed line is no surprise

    def send(self, words: dict[str, Any] | None = None) -> None:
        if self.line is not None:
            self.line.send(words)


class Watch:
    """One process's side of it; `meet` begins it."""

    def __init__(self, process: int, count: int, timeout: float) -> None:
        self.process, self.count, self.timeout = process, count, timeout
        self.code: int | None = None  # of this process, once its part has ended with an error
        self.over = threading.Event()
        self._result: int | None = None  # the exit code, once all is done
        self._all_done_at = math.inf
        # Process 0 goes last: JAX in the others complains when it is gone.
        self._cut_off = min(_SHUTDOWN, timeout) + _LEAVING * (process == 0)
        self._all_done = threading.Event()
        self._verdict, self._ends_at = (LOST, ""), 0.0
        self._every = min(1.0, timeout / 10)
        others = range(1, count) if process == 0 else [0]
        self._peers = {number: Peer(number) for number in others}
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._began = time.monotonic()
        self._met, self._alone = threading.Event(), threading.Event()

    # The main thread's side.

    def meet(self, host: str, port: int) -> None:
        """Return when all processes have joined. The port of process 0 is free again, for JAX.

        Args:
            host: where process 0 listens, or where the others find it.

        Raises:
            OSError: process 0 cannot listen there.
        """
        _delay_aborts()
        if self.process == 0:
            self._listener = listen(host, port)
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        else:
            zero = self._peers[0]
            zero.host = f"{host}:{port}"
            self._keep(zero, self._connect(host, port))
            about = {"process": self.process, "count": self.count, "host": socket.gethostname()}
            zero.send(about)
        threading.Thread(target=self._run, name="light-watch", daemon=True).start()
        self._met.wait()
        if self.process != 0:
            self._connect(host, port).close()  # JAX's service is there, or JAX would wait longer

    def failed(self, code: int, why: str) -> None:
        """Tell the others that this process's part has ended with an error."""
        if self.code is None:
            self.code = code
            self._end(code, f"{self._name(self.process)} stopped: {why}")
            self._ends_at = time.monotonic() + self.timeout / 2  # by itself, until then

    def await_end(self, seconds: float) -> None:
        """After a failure of the connections to the others: wait until it is known whose."""
        if self.over.wait(seconds):
            time.sleep(GRACE + 2 * _LEAVING)  # the thread exits

    def finished(self, code: int) -> None:
        """All is done and printed: what is left is to exit with this code. Once the others say so
        too, this process does so, whatever threads of it still run."""
        self._result = code
        self._tell({"done": True})

    def leave(self) -> None:
        """Exit, as the last that the interpreter does. JAX's own end is left out: it waits for the
        others, and for minutes in a barrier, should one of them be ahead of it."""
        if not self.over.is_set():
            if self._result is None:  # not a command of ours: its exit code is not known
                self._tell({"done": True})
                return
            self._all_done.wait()
            self.code = self._result
        elif self.code is None:
            self.await_end(0)
        self._ends_at = math.inf  # here and now
        if self.process == 0:  # JAX would abort the others
            self._alone.wait(GRACE + _LEAVING if self.over.is_set() else self._cut_off)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(LOST if self.code is None else self.code)

    def _connect(self, host: str, port: int) -> socket.socket:
        connection = connect(host, port, self.timeout)
        if connection is None:
            where = f"process 0 does not listen at {host}:{port}"
            self._exit(LOST, f"{where} {self._within()}; {_REMEDY}")
        return connection

    # The thread's side.

    def _run(self) -> None:
        try:
            last = time.monotonic()
            beat = last
            while True:
                for key, _ in self._selector.select(self._every):
                    key.data()
                now = time.monotonic()
                deaf = now - last - self._every  # this process itself was stopped, or is slow
                for peer in self._peers.values():
                    peer.heard = min(now, peer.heard + max(0.0, deaf))
                last = now
                if now >= beat:
                    self._tell(None)
                    beat = now + self._every
                self._judge(now)
        except Exception:
            traceback.print_exc()
            os._exit(1)

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):
            self._keep(Peer(-1), self._listener.accept()[0])

    def _keep(self, peer: Peer, connection: socket.socket) -> None:
        peer.line, peer.heard = Line(connection), time.monotonic()
        hear = functools.partial(self._hear, peer)
        self._selector.register(connection, selectors.EVENT_READ, hear)

    def _hear(self, peer: Peer) -> None:
        """Take what came on a line."""
        if peer.line is None:
            return
        try:
            messages = peer.line.receive()
            peer.heard = time.monotonic()
            for words in messages:
                self._told(peer, words)
        except BlockingIOError:
            return
        except (OSError, ValueError, KeyError, TypeError):  # not one of ours
            self._closed(peer)

    def _told(self, peer: Peer, words: dict[str, Any]) -> None:
        if peer.number < 0:
            self._join(peer, **words)
        if "host" in words:
            peer.host = str(words["host"])
        if "met" in words:
            self._met.set()
        if "done" in words:
            peer.done = True
        known = self.process == 0 and self.over.is_set()  # it answers, and ends before process 0
        if "over" in words and not known:
            peer.done = True
            self._end(int(words["over"]), str(words["why"]))

    def _join(self, stranger: Peer, process: int, count: int, host: str) -> None:
        """Process 0: another one says who it is."""
        if count != self.count or process not in self._peers:
            why = f"process {process} ({host}) is one of {count}, process 0 one of {self.count}"
            stranger.send({"over": 2, "why": why})
            self._end(2, f"{why}; start all with the same number of processes")
            return
        if self._peers[process].line is not None:
            why = f"process {process} runs already, on {self._peers[process].host}"
            stranger.send({"over": 2, "why": why})
            return
        stranger.number, stranger.host = process, host
        self._peers[process] = stranger
        if all(peer.host for peer in self._peers.values()) and self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._met.set()
            self._tell({"host": socket.gethostname(), "met": True})

    def _closed(self, peer: Peer) -> None:
        if peer.line is not None:
            self._selector.unregister(peer.line.socket)
            peer.line.socket.close()
            peer.line = None
        if peer.number < 0:
            return
        if not peer.done:
            self._lost(peer, "is gone: its connection closed")
        elif peer.number == 0 and self.over.is_set():
            self._ends_at = 0.0  # JAX is about to abort this process

    def _judge(self, now: float) -> None:
        absent = [peer.number for peer in self._peers.values() if not peer.host]
        if absent and now - self._began > self.timeout:
            self._end(LOST, f"{self._never_came(absent)} {self._within()}; {_REMEDY}")
        for peer in self._peers.values():
            silence = now - peer.heard
            if peer.line is not None and silence > _SILENT * self.timeout:
                self._lost(peer, f"gave no sign of life for {silence:.0f} s {self._within()}")
        if self._result is not None and all(peer.done for peer in self._peers.values()):
            self._all_done_at = min(self._all_done_at, now)
            self._all_done.set()
            if now > self._all_done_at + self._cut_off and not self.over.is_set():
                os._exit(self._result)
        if self.over.is_set() and now >= self._ends_at:
            self._exit(*self._verdict)
        if self._met.is_set() and all(peer.line is None for peer in self._peers.values()):
            self._alone.set()

    def _lost(self, peer: Peer, how: str) -> None:
        peer.done = True
        self._end(LOST, f"{self._name(peer.number)} {how}; {_REMEDY}")

    def _end(self, code: int, why: str) -> None:
        """The run is over: tell it to the others and, if its main thread does not, end this one."""
        if self.over.is_set():
            return
        self._verdict = (code, why)
        self._ends_at = time.monotonic() + (0.0 if code == LOST else GRACE)
        self._tell({"over": code, "why": why})
        self.over.set()

    def _exit(self, code: int, why: str) -> NoReturn:
        threading.Timer(_WRITE, os._exit, [code]).start()
        with contextlib.suppress(Exception):
            tell_last(f"{Path(sys.argv[0]).name}: {why}")  # JAX tells of its abort, in a page
        until = time.monotonic() + _LEAVING
        if self.process == 0:  # the others first: they must not find it gone
            while time.monotonic() < until and any(
                peer.line is not None for peer in self._peers.values() if not peer.done
            ):
                for key, _ in self._selector.select(0.1):
                    key.data()
        os._exit(code)

    def _tell(self, words: dict[str, Any] | None) -> None:
        for peer in self._peers.values():
            peer.send(words)

    def _name(self, process: int) -> str:
        own = process == self.process
        return f"process {process} ({socket.gethostname() if own else self._peers[process].host})"

    def _never_came(self, absent: list[int]) -> str:
        some = ", ".join(map(str, absent[:8])) + (", …" if len(absent) > 8 else "")
        return f"process{'es' * (len(absent) > 1)} {some} of {self.count} did not start"

    def _within(self) -> str:
        return f"(cluster_timeout {self.timeout:g} s)"


def _delay_aborts() -> None:
    """Let an abort of this process wait for six seconds, in which the thread ends it.

    JAX aborts a process, with a stack trace, as soon as process 0 is gone. The handler is the C
    library's `sleep`: it needs no interpreter, and the signal's number (6) is its argument.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
