"""report.html and starts.jsonl of a run that goes on, written beside the training loop."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import TracebackType

import jax

from light_jax.checkpoint.place import continues_here
from light_jax.checkpoint.saver import Saver
from light_jax.data.mixed import MixedStream
from light_jax.parallel.hosts import is_main
from light_jax.parallel.sharding import MESH_AXES
from light_jax.reporting.console import Reporter
from light_jax.reporting.log import Log
from light_jax.reporting.units import size
from light_jax.runs import html, notes
from light_jax.runs.facts import Facts, of_no_source, parameters_of, settings_of
from light_jax.runs.history import History
from light_jax.runs.report import NAME, Now, render
from light_jax.runs.source import commit
from light_jax.state import Run
from light_llm import __version__
from light_llm.errors import one_line
from light_llm.files.disk import write_atomically

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


class Page:
    """Process 0 writes the page anew at each evaluation, after each save and at the end.

    A thread does so, from metrics.jsonl and the folder; the loop only says when. A page must not
    cost the training: what goes wrong is one warning, and the run goes on.
    """

    def __init__(self, run: Run, saver: Saver, log: Log, reporter: Reporter) -> None:
        self._run, self._saver, self._reporter = run, saver, reporter
        self.directory = saver.directory
        self._wanted, self._state = threading.Event(), "running"
        self._warned: set[str] = set()
        self._facts: Facts | None = None  # made by the thread
        self._thread: threading.Thread | None = None
        if is_main():
            log.evaluated = saver.committed = self._wanted.set
            self._history = History(self.directory)
            self._thread = threading.Thread(target=self._work, name="light-report", daemon=True)

    def __enter__(self) -> Page:
        if self._thread is not None:
            self._try(notes.STARTS, self._note_start)
            self._thread.start()
            self._wanted.set()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._thread is not None:
            if error is not None:  # the state may be lost with it
                self._state = "failed"
            else:
                self._state = "finished" if self._run.is_finished else "stopped"
            self._wanted.set()
            self._thread.join()

    def _note_start(self) -> None:
        run, resumed = self._run, self._run.resumed
        again = continues_here(self.directory, resumed)
        start = {
            "time": time.time(),
            "step": run.steps_done,
            "resumed": None if resumed is None else resumed.prefix.name,
            "version": __version__,
            "jax": jax.__version__,
            "devices": f"{run.mesh.size} × {run.mesh.devices.flat[0].device_kind}",
            "hosts": jax.process_count(),
            "commit": commit(),
        }
        notes.add_start(self.directory, start, again=again)

    def _work(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            state = self._state
            self._try(NAME, lambda state=state: self._write(state))  # type: ignore[misc]
            if state != "running":
                return

    def _write(self, state: str) -> None:
        self._facts = self._facts or facts_of(self._run)
        html.check_ours(self.directory / NAME)
        self._history.update()
        text = render(self.directory, self._facts, self._history, Now(state, time.time()))
        self._saver.check()
        write_atomically(self.directory / NAME, text.encode("utf-8", "replace"))

    def _try(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            if name not in self._warned:
                self._warned.add(name)
                reason = one_line(error)
                where = "" if name in reason else f"{self.directory / name}: "
                self._reporter.line(f"warning: {where}{reason} (the run goes on without it)")


def facts_of(run: Run) -> Facts:
    """What the page says of the run besides what its folder holds."""
    cfg, stream = run.cfg, run.train_stream
    data = [("training", f"{stream.num_tokens:,} tokens in {_shards(len(stream.shards))}")]
    if run.val_stream is not None:
        val = run.val_stream
        data.append(("validation", f"{val.num_tokens:,} tokens in {_shards(len(val.shards))}"))
    windows, taken = 0, of_no_source
    if isinstance(stream, MixedStream):
        taken = stream.taken
    else:
        windows = len(stream)
        data.append(("windows", f"{windows:,} an epoch of {cfg.seq_len:,} tokens"))
    data.append(("order", cfg.window_order))
    return Facts(
        name=Path(cfg.checkpoint_dir).resolve().name or cfg.checkpoint_dir,
        num_steps=cfg.num_steps,
        tokens_per_step=cfg.tokens_per_step,
        windows_per_step=cfg.batch_size * cfg.gradient_accumulation_steps,
        windows=windows,
        settings=settings_of(cfg),
        parameters=parameters_of(cfg),
        data=tuple(data),
        hardware=tuple(_hardware(run)),
        taken=taken,
    )


def _shards(number: int) -> str:
    return f"{number:,} shard{'' if number == 1 else 's'}"


def _hardware(run: Run) -> list[tuple[str, str]]:
    device, mesh = run.mesh.devices.flat[0], run.mesh.shape
    lines = [
        ("devices", f"{run.mesh.size} × {device.device_kind} ({device.platform})"),
        ("mesh", " · ".join(f"{axis} {mesh[axis]}" for axis in MESH_AXES)),
        ("hosts", str(jax.process_count())),
    ]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit:
        lines.append(("memory", f"{size(limit)} a device"))
    lines += [
        ("system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"),
        ("python", platform.python_version()),
        ("light-llm-jax", f"{__version__}{f' at {sha[:12]}' if (sha := commit()) else ''}"),
    ]
    return lines + [(package, metadata.version(package)) for package in PACKAGES]
