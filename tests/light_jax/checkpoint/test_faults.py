"""At any instant, under any fault, the newest complete tag is whole and resumes."""

from __future__ import annotations

import dataclasses
import errno
import io
import itertools
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_runs import TINY, assert_same_weights, merged, metrics, write_config

from light_jax.checkpoint import protocol, store
from light_jax.checkpoint.ownership import step_tag
from light_jax.checkpoint.saver import Saver
from light_jax.config import TrainingConfig
from light_jax.state import HostState
from light_jax.training.loop import run_config
from light_jax.training.step import init_params, init_state
from light_llm.checkpoint import digests, layout, load_transformer, reading
from light_llm.checkpoint.tensors import read_tensors
from light_llm.errors import UserError
from light_llm.files import disk

CALLS = ("fsync", "rename", "replace", "link", "mkdir", "unlink", "rmdir")


class Crash(BaseException):
    """The process is gone: nothing catches this."""


class FileSystem:
    """The calls of `os` in their order; the one numbered `at` fails with `error` instead."""

    def __init__(self, patch, at: int | None = None, error: BaseException | None = None) -> None:
        self.calls: list[tuple[str, str]] = []
        self.at, self.error = at, error
        for owner, name in [*((os, name) for name in CALLS), (io, "open")]:
            patch.setattr(owner, name, self._watched(name, getattr(owner, name)))

    def _watched(self, name, call):
        def watched(*args, **kwargs):
            if name == "open" and args[1][0] == "r":
                return call(*args, **kwargs)  # reading changes nothing
            if len(self.calls) == self.at:
                self.at = None
                raise self.error
            self.calls.append((name, str(args[0])))
            return None if name == "fsync" else call(*args, **kwargs)  # fsync is slow, and unseen

        return watched


def stage(directory: Path, tag: str, step: int, parts: int = 1) -> None:
    """What a save has written before its commit: bytes that name the step, weights in parts too."""
    staging = protocol.start(directory, tag, "run")
    (staging / f"{tag}.state/d").mkdir(parents=True)
    (staging / f"{tag}.state/meta").write_bytes(b"meta %d" % step)
    (staging / f"{tag}.state/d/array").write_bytes(b"array %d" % step)
    if parts == 1:
        (staging / f"{tag}.safetensors").write_bytes(b"weights %d" % step)
        return
    names = [f"{tag}-{number:05d}-of-{parts:05d}.safetensors" for number in range(1, parts + 1)]
    for name in names:
        save_file({name[-25:]: np.full(3, step, np.float32)}, staging / name)
    index = {"metadata": {"total_size": 12 * parts}, "weight_map": {n[-25:]: n for n in names}}
    (staging / f"{tag}.safetensors.index.json").write_text(json.dumps(index))


def step_of(files: layout.Files) -> int:
    """The step that the weights name."""
    if not files.parts:
        return int(files.weights.read_bytes().removeprefix(b"weights "))
    paths = {tensor.file for tensor in read_tensors(files.weights).values()}
    (step,) = {float(array[0]) for path in paths for array in load_file(path).values()}
    return int(step)


def save(directory: Path, step: int, parts: int = 1) -> None:
    """A step that is the best as well, in a run that keeps one step tag."""
    cfg = TrainingConfig(**merged(TINY, {"keep_last_n": 1, "checkpoint_dir": str(directory)}))
    tags = ["best", step_tag(step)]
    stage(directory, tags[0], step, parts)
    record = reading.Record(run="run", generation=1, step=step)
    Saver(cfg, None).commit(protocol.writing_dir(directory, tags[0]), tags, record)


def newest(directory: Path) -> int:
    """The step of the newest tag; every tag that can be seen is whole, and of one step."""
    for tag in layout.tags(directory):
        checkpoint = reading.read_checkpoint(directory / tag)
        digests.verify(checkpoint)
        step = checkpoint.record.step
        assert step_of(checkpoint.files) == step
    return max(tag.step for tag in store.own_tags(directory))


def listing(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.mark.parametrize(
    "old, new",
    [
        (1, 1),
        (3, 2),
        pytest.param(1, 2, marks=pytest.mark.slow),
        pytest.param(2, 1, marks=pytest.mark.slow),
    ],
)
def test_a_crash_at_every_call_of_commit_and_recovery(tmp_path, monkeypatch, old, new):
    """Every call of a commit is where the process ends, and then every call of the recovery.

    The weights are one file or parts, before and after.
    """
    before = tmp_path / "before"
    before.mkdir()
    save(before, 1, old)
    after = shutil.copytree(before, tmp_path / "after")
    save(after, 2, new)
    out, crashed = tmp_path / "out", tmp_path / "crashed"

    def interrupted(work, at: int) -> list[tuple[str, str]] | None:
        """The calls of `work` up to the one it dies at; None if it ends before."""
        with monkeypatch.context() as patch:
            disk = FileSystem(patch, at, Crash())
            try:
                work()
            except Crash:
                return disk.calls
        return None

    points = recoveries = 0
    for at in itertools.count():
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(before, out)
        done = interrupted(lambda: save(out, 2, new), at)
        if done is None:
            break
        points += 1
        committed = ("rename", str(out / ".best.writing")) in done
        assert newest(out) == 2 if committed else newest(out) in (1, 2)
        shutil.rmtree(crashed, ignore_errors=True)
        shutil.copytree(out, crashed)
        for again in itertools.count():
            shutil.rmtree(out)
            shutil.copytree(crashed, out)
            died = interrupted(lambda: protocol.recover(out, "run"), again) is not None
            assert newest(out) == 2 if committed else newest(out) in (1, 2)
            if not died:
                break
            recoveries += 1
            protocol.recover(out, "run")
            assert newest(out) == (2 if committed else 1)
            assert not [name for name in listing(out) if name.startswith(".")]
        save(out, 2, new)  # a run that is resumed comes to the same save again
        assert listing(out) == listing(after)
    assert points > 60
    assert recoveries > 5 * points


def test_all_is_on_the_disk_before_the_rename_that_commits(tmp_path, monkeypatch):
    sync = disk.sync
    flushed: list[Path] = []
    for module in (protocol, disk):
        monkeypatch.setattr(module, "sync", lambda path: (flushed.append(path), sync(path)))
    save(tmp_path, 1)
    for tag in ("best", "step0000001"):
        staging = protocol.writing_dir(tmp_path, tag)
        first = flushed.index(tmp_path, flushed.index(staging))  # after the rename
        wanted = [f"{tag}.safetensors", f"{tag}.config.json", f"{tag}.state", ""]
        wanted += [f"{tag}.state/{name}" for name in ("d", "meta", "d/array")]
        assert {staging / name for name in wanted} <= set(flushed[:first])


def test_a_failing_call_is_an_error_and_leaves_the_tag_before(tmp_path, monkeypatch):
    """Each call of a commit fails once, as on a full or broken disk."""
    before = tmp_path / "before"
    before.mkdir()
    save(before, 1)
    for at in itertools.count():
        out = shutil.copytree(before, tmp_path / str(at))
        with monkeypatch.context() as patch:
            disk = FileSystem(patch, at, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
            try:
                save(out, 2)
            except OSError:
                failed = True
            else:
                failed = False
        if disk.at is not None:
            break  # there are no more calls
        assert newest(out) == 2 or failed
        protocol.recover(out, "run")
        save(out, 2)
        assert newest(out) == 2
        shutil.rmtree(out)
    assert at > 60


def test_a_reader_beside_a_writer_looks_again(tmp_path, monkeypatch):
    """Between its look and its reading a tag is published, then replaced, then deleted."""
    best = tmp_path / "best"
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(protocol, "publish", lambda directory, tag: None)
        save(tmp_path, 2)  # committed, as if the process had ended before it was published
    seen: list[reading.Checkpoint] = []

    def step_read(meanwhile):
        def read(checkpoint: reading.Checkpoint) -> bytes:
            seen.append(checkpoint)
            if len(seen) == 1:
                meanwhile()
            digests.verify(checkpoint)
            return checkpoint.files.weights.read_bytes()

        seen.clear()
        return reading.steadily(lambda: reading.read_checkpoint(best), read)

    assert step_read(lambda: protocol.recover(tmp_path, "run")) == b"weights 2"
    assert [checkpoint.record.step for checkpoint in seen] == [2, 2]
    assert step_read(lambda: save(tmp_path, 3)) == b"weights 3"
    assert [checkpoint.record.step for checkpoint in seen] == [2, 3]
    with pytest.raises(UserError, match="CRC-32"):  # nobody wrote: the damage is reported
        step_read(lambda: seen[0].files.weights.write_bytes(b"weights 4"))
    assert len(seen) == 1
    with pytest.raises(UserError, match="there is no checkpoint 'best'"):
        step_read(lambda: protocol.delete(tmp_path, "best", "run"))


def test_symlinks_lead_nowhere(tmp_path):
    """A folder of traps: what they point to is neither written nor deleted."""
    out, outside = tmp_path / "out", tmp_path / "outside"
    out.mkdir()
    outside.mkdir()
    for tag in ("best", "step0000001"):
        stage(outside, tag, 1)
    for name in ("best.config.json", "victim"):
        (outside / name).write_text("{}")
    before = {path: path.lstat().st_mtime_ns for path in outside.rglob("*")}
    (out / ".best.committed").symlink_to(outside)
    (out / ".step0000001.writing").symlink_to(outside)
    (out / "step0000002.state").symlink_to(outside)
    (out / ".metrics.jsonl.tmp").symlink_to(outside / "victim")
    protocol.recover(out, "run")
    disk.write_atomically(out / "metrics.jsonl", b"mine")
    for tag in ("best", "step0000001"):
        (out / f"{tag}.state").symlink_to(outside)
    save(out, 1)
    protocol.delete(out, "step0000001", "run")
    (out / ".lock").symlink_to(outside / "victim")
    with pytest.raises(OSError, match="symbolic links"), protocol.one_writer(out):
        pass
    assert {path: path.lstat().st_mtime_ns for path in outside.rglob("*")} == before
    record = json.loads((out / "best.config.json").read_text())
    for name in ("../victim", ".state/../../outside/victim", "/etc/passwd", ".state//etc/passwd"):
        record["checkpoint"]["files"] = {name: [2, 0]}
        (out / "best.config.json").write_text(json.dumps(reading.seal(record)))
        with pytest.raises(UserError, match="which does not belong to a checkpoint"):
            digests.verify(reading.read_checkpoint(out / "best"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three steps that keeps a tag of each."""
    folder = tmp_path_factory.mktemp("trained")
    write_config(folder / "c.yaml", num_steps=3, save_every=1, keep_last_n=9, eval_every=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_config("c.yaml") == 0
    return folder


def test_any_damage_is_reported_with_the_file(trained, tmp_path, monkeypatch):
    """Cut short, a bit flipped, gone, or of another tag: refused; `auto` takes the tag before.

    Tags of one step share their files, so that damage to step 3 is damage to `best` and `final`.
    """
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    for tag in ("best", "final"):
        for path in list(out.glob(f"{tag}.*")):
            disk.remove(path)
    recorded = reading.read_checkpoint(out / "step0000003").record.files
    paths = {f"step0000003{name}": out / f"step0000003{name}" for name in recorded}
    assert len(paths) > 8
    damages = 0
    for name, path in paths.items():
        whole = path.read_bytes()
        other = out / name.replace("step0000003", "step0000002")
        for damage in (whole[: len(whole) // 2], flipped(whole), whole + b"x", None, other):
            if isinstance(damage, Path):
                damage = damage.read_bytes() if damage.is_file() else None
            path.unlink()
            if damage is not None:
                path.write_bytes(damage)
            if damage != whole:
                damages += 1
                with pytest.raises(UserError, match=r"step0000003"):
                    store.find("out/step0000003", out)
                if "safetensors" in name and damage is None:
                    assert store.find("auto", out).step == 2
                else:
                    with pytest.warns(UserWarning, match=r"use another tag \(--resume auto does\)"):
                        assert store.find("auto", out).step == 2
            path.write_bytes(whole)
    assert damages >= 3 * len(paths)
    assert store.find("auto", out).step == 3
    config = out / "step0000003.config.json"
    whole = config.read_bytes()
    config.write_bytes(whole.replace(b'"num_steps": 3', b'"num_steps": 7'))
    with pytest.warns(UserWarning, match=r"passes over this checkpoint"):
        assert store.find("auto", out).step == 2
    for name in ("step0000001", "step0000002"):
        damaged = out / f"{name}.config.json"
        if damaged.exists():
            damaged.rename(damaged.with_suffix(".away"))
    with pytest.raises(UserError, match="step0000003"), pytest.warns(match="passes over"):
        store.find("auto", out)  # and not a run from the beginning
    for moved in out.glob("*.away"):
        moved.rename(moved.with_suffix(".json"))
    # of another generation than its members
    config.write_bytes((out / "step0000002.config.json").read_bytes())
    with pytest.raises(UserError, match="CRC-32"):
        store.find("out/step0000003", out)
    config.unlink()
    with pytest.raises(UserError, match=r"have no config|no checkpoint"):
        store.find("out/step0000003", out)
    assert run_config("c.yaml", "auto") == 0  # trains the third step again
    for tag in ("best", "final", "step0000003"):
        digests.verify(reading.read_checkpoint(out / tag))
        assert_same_weights(out / f"{tag}.safetensors", trained / f"out/{tag}.safetensors")
    assert metrics(out, timeless=True) == metrics(trained / "out", timeless=True)


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1]) if data else b"\0"


@pytest.fixture
def saver(tmp_path, monkeypatch):
    """A saver with one committed tag, and the state to save more of."""
    monkeypatch.chdir(tmp_path)
    cfg = TrainingConfig(**TINY)
    made = Saver(cfg, None)
    made.directory.mkdir()
    state, host = init_state(cfg, init_params(cfg)), HostState("run", [])
    made.save(["step0000001"], state, host)
    made.wait()
    return made, state, host


@pytest.mark.parametrize("cut_off", ["weights", "array", "both", "nothing"])
def test_a_full_disk_fails_the_next_save_or_the_end(saver, cut_off):
    """By a limit on the size of files, set by the sizes of a tag that was saved without one.

    How orbax cuts its files is not the same each time, but an array is in one file.
    """
    made, state, host = saver
    weights = (made.directory / "step0000001.safetensors").stat().st_size
    moment = jax.numpy.zeros(1 if cut_off == "weights" else weights, "float32")
    state = dataclasses.replace(state, opt_state={"moment": moment})
    made.save(["step0000001"], state, host)
    made.wait()
    total = sum(path.stat().st_size for path in made.directory.rglob("*") if path.is_file())
    limits = {"weights": weights - 1, "array": weights, "both": weights - 1, "nothing": total}
    limit = limits[cut_off]
    if cut_off == "weights":
        assert total - weights < limit
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for ending in (made.wait, lambda: made.save(["step0000003"], state, host)):
        made.save(["step0000001"], state, host)
        made.wait()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            made.save(["step0000002"], state, host)
            ending()
            made.wait()
            message = ""
        except UserError as error:
            message = str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        if cut_off == "nothing":
            assert message == ""
        else:
            assert "step0000002: cannot be saved" in message
            assert "File too large" in message
        recover_when_quiet(made.directory)
        tags = set(layout.tags(made.directory))
        assert tags == {"step0000001"} if message else tags >= {"step0000001", "step0000002"}
        for tag in tags:
            digests.verify(reading.read_checkpoint(made.directory / tag))
            protocol.delete(made.directory, tag, "run")


def recover_when_quiet(directory: Path) -> None:
    """As the next process would; in this one, orbax may be writing still after its error."""
    for _ in range(100):
        try:
            return protocol.recover(directory, "run")
        except OSError:
            time.sleep(0.05)
    return protocol.recover(directory, "run")


def test_the_loop_goes_on_while_a_save_is_under_way(saver, monkeypatch):
    """The state at the save is written, even if its buffers are reused."""
    made, state, host = saver
    arrays = jax.tree.map(lambda x: x + 1, state)
    expected = jax.device_get(arrays.weights)
    gate = []
    commit = Saver.commit
    monkeypatch.setattr(Saver, "commit", lambda *args: (gate.append(1), commit(*args)))
    made.save(["best", "step0000001"], arrays, host)
    donated = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 5, s), donate_argnums=0)(arrays)
    jax.block_until_ready(donated)
    made.wait()
    assert gate == [1]
    saved = store.load_weights(
        made.directory / "best.safetensors",
        made.cfg.model,
        jax.tree.map(lambda x: x.sharding, state.weights),
    )
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), saved, expected))
    one, two = (layout.locate(made.directory / t).weights for t in ("best", "step0000001"))
    assert one.samefile(two)


def test_a_fault_in_the_midst_of_a_run_ends_it_with_one_message(tmp_path, monkeypatch):
    """The save of step 3 fails: step 2 is intact, step 4 is tried and committed, then it ends."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "c.yaml", num_steps=6, save_every=1, val_data=..., keep_last_n=9)
    sync, times = disk.sync, []

    def failing(path: Path) -> None:
        times.append(path.name == "step0000003.safetensors")
        if times[-1]:
            raise OSError(errno.EIO, "Input/output error")
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync", failing)
        with pytest.raises(UserError, match=r"step0000003: cannot be saved .*Input/output error"):
            run_config("c.yaml")
    assert layout.tags(Path("out")) == ["step0000001", "step0000002", "step0000004"]
    digests.verify(reading.read_checkpoint("out/step0000002"))
    assert store.find("auto", Path("out")).step == 4
    assert run_config("c.yaml", "auto") == 0


def test_one_writer_per_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "c.yaml", num_steps=1)
    Path("out").mkdir()
    with protocol.one_writer(Path("out")), pytest.raises(UserError, match="written by another run"):
        run_config("c.yaml")
    assert listing(Path("out")) == [".lock"]


def test_a_copy_of_a_run_does_not_write_into_the_original(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    shutil.copytree("out", "copy")
    before = listing(Path("out"))
    with pytest.raises(UserError, match="checkpoint_dir='out' holds a run already"):
        run_config("c.yaml", "copy/step0000001")
    assert listing(Path("out")) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that nobody can write")
def test_a_directory_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "c.yaml", num_steps=1, checkpoint_dir="/proc/self/out")
    with pytest.raises(UserError, match="checkpoint_dir='/proc/self/out' cannot be written"):
        run_config("c.yaml")


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_a_pickle_is_never_executed(trained, tmp_path, monkeypatch):
    """Under the names of weights, of a state, and of what stands beside it in the torch trainer."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    evil = pickle.dumps(Payload(tmp_path / "executed"))
    Path("evil.safetensors").write_bytes(evil)
    Path("out/step0000003.state.pt").write_bytes(evil)
    write_config(tmp_path / "evil.yaml", init_from="evil.safetensors", checkpoint_dir="evil")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        run_config("evil.yaml")
    disk.remove(Path("out/step0000003.safetensors"))
    Path("out/step0000003.safetensors").write_bytes(evil)
    for use in (
        lambda: run_config("c.yaml", "out/step0000003"),
        lambda: load_transformer("out/step0000003"),
        lambda: load_transformer("evil.safetensors", TrainingConfig(**TINY).model),
    ):
        with pytest.raises(UserError):
            use()
    assert not Path("executed").exists()
    pickle.loads(evil)  # it is a working one
    assert Path("executed").exists()


def test_killed_at_random_moments(tmp_path):
    """Three kills of a real llm-train; kill_sweep.py makes any number."""
    script = Path(__file__).with_name("kill_sweep.py")
    done = subprocess.run(
        [sys.executable, script, "--kills", "3"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "every run ended with the weights of the uninterrupted one" in done.stdout
