"""SIGTERM, Ctrl-C, a closed session, max_time: what was trained is committed, and the process ends.

Before the first step nothing was trained, so the first signal ends the process at once. Afterwards
the first one ends the run after its step, the second one at once.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import threading
import time
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

from light_jax.parallel.hosts import is_main, tell_others

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopper:
    """Listens while the context is open; `requested(step)` is asked after each step.

    Why a thread: Python runs a handler in the main thread between two lines of Python, so not while
    XLA compiles or a device is waited for, which can take minutes. But the interpreter's handler in
    C writes the signal's number to a pipe at once (`signal.set_wakeup_fd`). The thread reads the
    pipe, counts, and exits the process when it must, even if the main thread is busy.

    Why JAX's handler: with several processes, JAX's preemption service makes all hosts agree on the
    step after which they stop. It listens only to SIGTERM, by its own handler in C, which Python's
    replaces. So that handler is kept, and the thread calls it for every signal.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.out_of_time = False
        """Whether max_time is over, and no signal came before."""
        self._deadline = math.inf
        self._asked = False
        self._training = False
        self._lock = threading.Lock()  # of _training: whether to exit or let the step end
        self._previous: dict[int, object] = {}
        self._jax_handler: int | None = None

    def __enter__(self) -> Stopper:
        self._jax_handler = _take_c_handler() if jax.process_count() > 1 else None
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)  # a handler must not wait, and Python insists on it
        self._previous_fd = signal.set_wakeup_fd(self._write)
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup: the run outlives its session
            self._previous[number] = signal.signal(number, self._on_signal)
        self._thread = threading.Thread(target=self._listen, name="light-signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)  # type: ignore[arg-type]
        if self._jax_handler is not None:
            _libc_signal()(signal.SIGTERM, self._jax_handler)
        os.write(self._write, b"\0")  # ends the thread: no signal has this number
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def training_begins(self) -> None:
        """From here on there is something to lose: the first signal lets the step end."""
        with self._lock:
            self._training = True

    def end_at(self, deadline: float) -> None:
        """Stop as at a signal at that time of `time.monotonic()`; process 0's clock decides."""
        if is_main():
            self._deadline = deadline

    def ask(self) -> None:
        """Stop as at a signal, for a reason that this process alone may know."""
        if not self._asked:
            self._asked = True
            self._tell_hosts()

    @property
    def asked(self) -> bool:
        """Whether this process is to stop; the others may not know it yet."""
        if time.monotonic() >= self._deadline and not (self._asked or self.signal):
            self.out_of_time = True
            self.ask()
        return self._asked or self.signal is not None

    def requested(self, step: int) -> bool:
        """Whether to stop after `step` updates; the same answer on every host."""
        asked = self.asked
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return asked

    @property
    def exit_code(self) -> int:
        """The exit code of a run that a signal ended, here or on another host, or max_time."""
        return 128 + (self.signal or signal.SIGTERM)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Without a handler the signal would end the process; the thread does the rest."""
        self.signal = self.signal or number
        previous = self._previous.get(number)
        if not self._training and callable(previous):
            previous(number, frame)

    def _listen(self) -> None:
        count = 0
        while number := os.read(self._read, 1)[0]:
            if number not in self._previous:
                continue
            count += 1
            with self._lock:
                if count > 1 or not (self._training or callable(self._previous[number])):
                    tell_others(128 + number, f"ended by {signal.Signals(number).name}")
                    os._exit(128 + number)  # sys.exit would end this thread alone
            self.signal = self.signal or number
            self._tell_hosts()

    def _tell_hosts(self) -> None:
        if self._jax_handler is not None:
            ctypes.CFUNCTYPE(None, ctypes.c_int)(self._jax_handler)(signal.SIGTERM)


def _take_c_handler() -> int | None:
    """Remove JAX's handler of SIGTERM, and return its address, which Python's `signal` cannot."""
    return _libc_signal()(signal.SIGTERM, ctypes.c_void_p(0))


def _libc_signal():  # type: ignore[no-untyped-def]
    function = ctypes.CDLL(None).signal
    function.argtypes, function.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    return function
