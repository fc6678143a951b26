"""The checkpoint directory that a run writes: saving in the background, keeping few."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

from light_jax.checkpoint import place, protocol, store, writing
from light_jax.checkpoint.hf_export import Exports
from light_jax.checkpoint.host_state import is_mine
from light_jax.checkpoint.ownership import STEP_TAG
from light_jax.checkpoint.room import Room
from light_jax.checkpoint.state import import_orbax
from light_jax.checkpoint.tokenizer import keep_tokenizer
from light_jax.checkpoint.writing import Digests
from light_jax.config import TrainingConfig
from light_jax.parallel.devices import return_freed_memory
from light_jax.parallel.hosts import (
    announce,
    exit_code,
    is_main,
    others_done,
    tell_others,
    together,
)
from light_jax.state import HostState, Tag, TrainState
from light_llm.checkpoint import layout, reading
from light_llm.errors import UserError, one_line, with_earlier
from light_llm.files import disk, given
from light_llm.printing import tell

_CONTINUE = "continue with --resume auto: what was committed before is intact"


class Saver:
    """One run's writer. Every process makes one; process 0 commits.

    A save has two halves. On the main thread the state is copied to the host, which all processes
    do together: the next step donates the state's buffers, and XLA writes over them while the old
    values are still being saved. A background thread then writes and commits; it runs no
    collective, and what goes wrong there is raised by the next `save`, or by `wait`. One save is
    under way at a time, so there is one copy of the state at most.

    Where the host has no room for a copy (light_jax.checkpoint.room), everything is written on the
    main thread, from where it is, a tensor at a time; only the commit is left for the other thread.
    """

    def __init__(self, cfg: TrainingConfig, resumed: Tag | None) -> None:
        self.cfg, self.directory = cfg, Path(cfg.checkpoint_dir)
        self.resumed = resumed
        self.committed: Callable[[], None] = lambda: None  # called after each commit, by process 0
        self.generation = 1  # known to process 0 once the directory is open
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="light-save")
        self._saving: Future[None] | None = None
        self._saves = 0
        self._room = Room()
        self._exports = Exports(self.directory) if cfg.hf_export else None
        self._tokenizer: str | None = None  # its fingerprint, which process 0 knows
        self._lock: disk.Lock | None = None  # process 0's, while the directory is open

    @contextlib.contextmanager
    def open(self, config_path: Path) -> Iterator[Saver]:
        """Make the directory and lock it while the context is open; every process enters it.

        On entering, what a crash left is completed or discarded, and the config file is copied. On
        leaving, the save under way is waited for. If an error is already on its way, a save that
        fails as well is printed, not raised.

        Raises:
            UserError: another run writes there, or did so since this one was checked.
        """
        with contextlib.ExitStack() as held:
            together(lambda: self._prepare(held, config_path) if is_main() else None)
            self._thread.submit(import_orbax)  # by the first save it is there
            try:
                yield self
            except BaseException as error:
                self._close(error)
                raise
            self._close(None)

    def _prepare(self, held: contextlib.ExitStack, config_path: Path) -> None:
        with disk_faults(self.directory, "cannot be written", _CONTINUE):
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = held.enter_context(protocol.one_writer(self.directory))
            place.check_writable(self.cfg, self.resumed)
            here = place.continues_here(self.directory, self.resumed)
            run = self.resumed.run if here and self.resumed else None
            protocol.recover(self.directory, run)
            self._copy_config(config_path)
            self._tokenizer = keep_tokenizer(self.directory, self.cfg.tokenizer_path, run)
            if self.resumed is not None:
                self._note_resume(self.resumed, here)

    def _note_resume(self, resumed: Tag, here: bool) -> None:
        self.generation = 1 + max(resumed.generation, store.starts(self.directory))
        start = store.Start(self.generation, resumed.run, resumed.prefix.name if here else None)
        store.write_start(self.directory, start)

    def _copy_config(self, path: Path) -> None:
        """Keep the text that was parsed, even if the file has changed since."""
        name = "config.json" if path.name.endswith(layout.CONFIG) else path.name
        target = self.directory / name
        if not (target.exists() and path.exists() and target.samefile(path)):
            text = self.cfg.source.text or given.read_bytes(path, what="the config file")
            disk.write_atomically(target, text)

    def check(self) -> None:
        """Check that the directory is still the one that this run locked; process 0 does.

        Raises:
            UserError: it is not, or the lock was removed.
        """
        if self._lock is not None:
            protocol.check_lock(self.directory, self._lock)

    def save(
        self,
        tags: Sequence[str],
        state: TrainState,
        host: HostState,
        val_loss: float | None = None,
    ) -> None:
        """Commit the state under each of these tags, in this order; every process calls it.

        Returns when the state is copied to the host, or written, so the next step may donate it.

        Args:
            val_loss: the validation loss of this state, for the record of each tag.

        Raises:
            UserError: the previous save failed, or this one cannot begin. Earlier tags are intact.
                After a failed save this one is tried first: the disk may be well again.
        """
        earlier = self._failure()
        with with_earlier(earlier):
            self._begin(tags, state, host, val_loss)
            if earlier is not None:
                self.wait()
        if earlier is not None:
            raise earlier

    @property
    def failed(self) -> bool:
        """Whether the save under way is known to have failed; the next `save` raises why."""
        saving = self._saving
        return saving is not None and saving.done() and saving.exception() is not None

    def _failure(self) -> UserError | None:
        """Wait for the previous save, and return why it failed."""
        try:
            self.wait()
        except UserError as error:
            return error
        return None

    def _begin(
        self, tags: Sequence[str], state: TrainState, host: HostState, val_loss: float | None
    ) -> None:
        self._saves += 1
        name, step = f"save{self._saves}", int(state.step)
        staging = protocol.writing_dir(self.directory, tags[0])
        with disk_faults(self.directory / tags[0], "cannot be saved", _CONTINUE):
            together(lambda: self._start(tags[0], host.run) if is_main() else None)
            way = writing.copied if self._room(state) else writing.in_place
            write = way(staging, tags[0], state, host, self.cfg, self.check)
        known = val_loss if val_loss is not None and math.isfinite(val_loss) else None
        record = reading.Record(
            run=host.run,
            generation=self.generation,
            step=step,
            val_loss=known,
            tokenizer=self._tokenizer,
        )

        def finish() -> None:
            if is_main():
                written = write()
                others_done(name)
                self.commit(staging, tags, record, written)
                return
            with announce(name):
                write()
                disk.flush(staging, is_mine)

        self._saving = self._thread.submit(self._guarded(self.directory / tags[0], finish))

    def _start(self, tag: str, run: str) -> None:
        self.check()
        protocol.start(self.directory, tag, run)

    @staticmethod
    def _guarded(prefix: Path, work: Callable[[], None]) -> Callable[[], None]:
        def guarded() -> None:
            with disk_faults(prefix, "cannot be saved", _CONTINUE):
                work()
            return_freed_memory()  # the save's buffers: glibc would keep some more each time

        return guarded

    def wait(self) -> None:
        """Return when everything saved is committed; every process calls it.

        Raises:
            UserError: a save failed on one of the processes.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            if (error := saving.exception()) is not None:
                # the others may wait in orbax, for 20 minutes, for the part of this one
                tell_others(exit_code(error), one_line(error))
            together(saving.result)

    def _close(self, error: BaseException | None) -> None:
        saving, self._saving = self._saving, None
        self._thread.shutdown(wait=True)
        failure = None if saving is None else saving.exception()
        if self._exports is not None:
            self._exports.finish() if error is None else self._exports.stop()
        if failure is not None:
            if error is None:
                raise failure
            tell(f"llm-train: {failure}")

    def commit(
        self,
        staging: Path,
        tags: Sequence[str],
        record: reading.Record,
        digests: Digests = MappingProxyType({}),
    ) -> None:
        """Publish a staged tag under each of `tags`, then delete old tags.

        Args:
            digests: of the files whose digests are known already.
        """
        self.check()
        writing.write_config(staging, tags[0], self.cfg, record, digests)
        for tag in tags[1:]:
            protocol.link(self.directory, tags[0], tag, record.run)
        for tag in tags:
            self.check()
            protocol.commit(self.directory, tag, record.run)
        self._retain(record.run)
        if self._exports is not None:
            self._exports.add(tags)
        self.committed()

    def _retain(self, run: str) -> None:
        """Delete step tags that the resume left behind, and all but the newest keep_last_n.

        Tags of another run, which somebody copied here meanwhile, are neither counted nor deleted.
        """
        tags = [tag for tag in store.own_tags(self.directory) if tag.run == run]
        steps = [tag for tag in tags if STEP_TAG.fullmatch(tag.prefix.name)]
        left_at = 0 if self.resumed is None else self.resumed.step
        abandoned = [t for t in steps if t.generation < self.generation and t.step > left_at]
        kept = sorted((t for t in steps if t not in abandoned), key=lambda tag: tag.step)
        for tag in [*abandoned, *kept[: -self.cfg.keep_last_n]]:
            self.check()
            protocol.delete(self.directory, tag.prefix.name, run)

    def has_final(self) -> bool:
        """Whether the resumed step's `final` tag is there."""
        finals = [tag for tag in store.own_tags(self.directory) if tag.prefix.name == "final"]
        return self.resumed is not None and any(tag.step == self.resumed.step for tag in finals)


@contextlib.contextmanager
def disk_faults(path: Path, what: str, remedy: str) -> Iterator[None]:
    """Raise a fault of the disk as a UserError that names `path` and says what to do."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and "os_error_code=" not in str(error):
            raise  # tensorstore raises this type for a full disk and for a bug
        raise UserError(
            f"{path}: {what} ({one_line(error)}); free some space or fix the disk, and {remedy}"
        ) from None
