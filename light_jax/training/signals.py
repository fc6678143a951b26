"""SIGTERM and Ctrl-C: the first finishes the step and commits it, the second exits at once."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopper:
    """Listens while the context is open; `requested(step)` is asked after each step.

    Python runs a signal's handler between two lines of Python, so not while XLA compiles or a
    device is waited for. So a thread counts the signals, which the interpreter's C handler wakes.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, object] = {}
        self._jax_handler: int | None = None

    def __enter__(self) -> Stopper:
        self._jax_handler = _take_c_handler() if jax.process_count() > 1 else None
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._previous_fd = signal.set_wakeup_fd(self._write)
        for number in SIGNALS:
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
        os.write(self._write, b"\0")  # no signal has this number
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number

    def _listen(self) -> None:
        count = 0
        while number := os.read(self._read, 1)[0]:
            if number not in SIGNALS:
                continue
            count += 1
            if count > 1:
                os._exit(128 + number)
            self.signal = self.signal or number
            if self._jax_handler is not None:  # and all hosts will agree on a step
                ctypes.CFUNCTYPE(None, ctypes.c_int)(self._jax_handler)(signal.SIGTERM)

    def requested(self, step: int) -> bool:
        """Whether to stop after `step` updates; the same answer on every host."""
        if jax.process_count() > 1:
            if multihost_utils.reached_preemption_sync_point(step):
                self.signal = self.signal or signal.SIGTERM
                return True
            return False
        return self.signal is not None


def _take_c_handler() -> int | None:
    """JAX's preemption service listens to SIGTERM in C++, where Python's `signal` cannot see it."""
    return _libc_signal()(signal.SIGTERM, ctypes.c_void_p(0))


def _libc_signal():  # type: ignore[no-untyped-def]
    function = ctypes.CDLL(None).signal
    function.argtypes, function.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    return function
