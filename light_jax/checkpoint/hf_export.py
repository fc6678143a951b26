"""`hf_export`: the tags `best` and `final` as folders for transformers, made by another process.

That process is `llm-convert hf` with PyTorch, on the CPU. It runs beside the training, one at a
time. What goes wrong in it is told and does not end the run: the checkpoint is there.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

from light_llm.errors import UserError, one_line
from light_llm.printing import tell

FOLDER = "hf"
"""In checkpoint_dir."""
EXPORTED = ("best", "final")
COMMAND = "from light_jax.cli.convert import main; main()"


def check_hf_export() -> None:
    """Refuse, before training, a run whose exports could not be made.

    Raises:
        UserError: PyTorch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "hf_export=True needs PyTorch; pip install 'light-llm-jax[torch]', or set it to false"
        )


class _Running(NamedTuple):
    tag: str
    process: subprocess.Popen[bytes]
    errors: IO[bytes]


class Exports:
    """The exports of one run; process 0 has one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._due: list[str] = []
        self._running: _Running | None = None

    def add(self, tags: Sequence[str]) -> None:
        """Export these of the tags that are exported; begins now, or once the one before is done.

        A tag that is committed again meanwhile is exported once, as it is then.
        """
        self._due += [tag for tag in tags if tag in EXPORTED and tag not in self._due]
        self._go_on(wait=False)

    def finish(self) -> None:
        """Return when everything is exported."""
        while self._due or self._running:
            self._go_on(wait=True)

    def stop(self) -> None:
        """End the export under way, which then leaves nothing, and begin no other."""
        self._due.clear()
        if self._running is not None:
            self._running.process.terminate()
            self._go_on(wait=True)

    def _go_on(self, *, wait: bool) -> None:
        running = self._running
        if running is not None and (wait or running.process.poll() is not None):
            self._running = None
            self._tell_of(running, running.process.wait())
        if self._running is None and self._due:
            self._begin(self._due.pop(0))

    def _begin(self, tag: str) -> None:
        folder = self._directory / FOLDER
        try:
            folder.mkdir(exist_ok=True)
            errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed when the process has ended)
            process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, "hf", self._directory / tag, folder / tag],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for the run, which ends this one if it must
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},  # the training has the memory
            )
        except OSError as error:
            _warn(tag, one_line(error))
            return
        self._running = _Running(tag, process, errors)

    def _tell_of(self, done: _Running, code: int) -> None:
        with done.errors:
            done.errors.seek(0)
            said = done.errors.read().decode(errors="replace").strip().removeprefix("llm-convert: ")
        if code > 0:
            _warn(done.tag, said or f"it ended with {code}")
        elif code < 0:
            _warn(done.tag, f"it was ended by signal {-code}")


def _warn(tag: str, reason: str) -> None:
    tell(f"warning: hf_export of {tag!r} failed: {reason}; llm-convert hf does it again")
