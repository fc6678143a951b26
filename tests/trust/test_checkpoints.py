"""Checkpoint folders that are foreign, shared, moved or swapped: nothing foreign is deleted, no
claim is believed, and what is committed can be resumed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import struct
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file
from safetensors.torch import save_file as save_torch
from tiny_runs import TINY, contents, merged, write_config

from conversion import load_jax
from light_jax.checkpoint import host_state, protocol, state, store
from light_jax.checkpoint import writing as saving
from light_jax.checkpoint.ownership import MARK
from light_jax.checkpoint.saver import Saver
from light_jax.config import TrainingConfig, load_config
from light_jax.parity.checkpoint import load_pair
from light_jax.state import HostState
from light_jax.training.loop import run_config
from light_jax.training.replay import replay
from light_jax.training.step import init_params, init_state
from light_llm.checkpoint import digests, layout, load_transformer, reading
from light_llm.errors import UserError

CHANGES = {"num_steps": 2, "save_every": 1, "val_data": ..., "model": {"num_layers": 1}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of two steps: step0000001, step0000002, final."""
    folder = tmp_path_factory.mktemp("trained")
    write_config(folder / "c.yaml", **CHANGES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_config("c.yaml") == 0
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch) -> Path:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(resume: str | None = None, **changes) -> int:
    write_config(Path("c.yaml"), **merged(CHANGES, changes))
    return run_config("c.yaml", resume)


def saver(directory: str, run: str = "run", **changes) -> tuple[Saver, tuple]:
    cfg = TrainingConfig(**merged(TINY, merged(CHANGES, {"checkpoint_dir": directory, **changes})))
    Path(directory).mkdir(exist_ok=True)
    return Saver(cfg, None), (init_state(cfg, init_params(cfg)), HostState(run, []))


# ------------------------------------------------------------- what is committed can be resumed


def test_paths_are_read_the_operating_systems_way(here):
    """`LINK/..` is the folder above what the link leads to."""
    Path("scratch/project").mkdir(parents=True)
    Path("home").mkdir()
    Path("home/project").symlink_to("../scratch/project")
    assert train(checkpoint_dir="home/project/../runs", num_steps=1) == 0
    assert not Path("home/runs").exists()
    assert train("auto", checkpoint_dir="home/project/../runs") == 0
    assert train("home/project/../runs/final", checkpoint_dir="new", num_steps=3) == 0


def test_a_backslash_is_refused_before_training(here):
    for name in ("a\\b", "a[b]"):
        with pytest.raises(UserError, match="so no checkpoint can be written there"):
            train(checkpoint_dir=name)
        assert not Path(name).exists()


def test_a_state_whose_arrays_are_elsewhere_is_not_committed(here, monkeypatch):
    """As when orbax reads a path in its own way."""
    made, (values, host) = saver("elsewhere")
    made.save(["step0000001"], values, host)
    made.wait()
    save_async = ocp.save_async

    def astray(path, *args, **kwargs):
        written = save_async(path, *args, **kwargs)

        class Response:
            @staticmethod
            def result():
                written.result()
                shutil.rmtree(path / "state/d")

        return Response()

    monkeypatch.setattr(ocp, "save_async", astray)
    made.save(["step0000002"], values, host)
    with pytest.raises(UserError, match=r"step0000002: cannot be saved .*cannot be resumed from"):
        made.wait()
    assert layout.tags(Path("elsewhere")) == ["step0000001"]


def test_a_moved_folder_resumes(here, monkeypatch):
    """Stopped after a resume and before its first tag, moved, and continued where it was."""

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("light_jax.training.run.BatchLoader", stopped)
        with pytest.raises(KeyboardInterrupt):
            train("out/step0000001", num_steps=3)
    assert str(here) not in Path("out/.resumed.json").read_text()
    Path("out").rename("moved")
    found = store.find("auto", Path("moved"))
    assert (found.prefix.name, found.step) == ("step0000001", 1)
    old = {"generation": 2, "resumed": str(here / "moved/step0000001")}  # of an older version
    Path("moved/.resumed.json").write_text(json.dumps(old))
    assert store.find("auto", Path("moved")).step == 1
    for text, message in (
        (json.dumps(old | {"resumed": str(here / "out/step0000001")}), "in another folder"),
        (
            json.dumps({"generation": 2, "run": "r", "resumed": "../out/final"}),
            "not a checkpoint's name",
        ),
        (
            json.dumps({"generation": 2, "run": "r", "resumed": "step0000001"}),
            "belongs to another run",
        ),
        ("[" * 100_000, "too deep"),
        ("{}", "damaged"),
    ):
        Path("moved/.resumed.json").write_text(text)
        with pytest.raises(UserError, match=message):
            store.find("auto", Path("moved"))


# --------------------------------------------------------------------- nothing foreign is deleted


def test_a_start_deletes_nothing_foreign(here):
    out = Path("new")
    foreign = {
        "step0000100.state/notes.txt": "other",
        "step0000100.safetensors": "weights",
        ".essay.writing/chapter.txt": "draft",
        ".step0000050.writing/chapter.txt": "draft",
        ".final.committed.txt": "mine",
        ".step0000007.deleting": "mine",
        "nonfinite-step9/tokens.npy": "x",
    }
    for name, text in foreign.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    assert train(checkpoint_dir="new") == 0
    assert train("auto", checkpoint_dir="new", num_steps=3) == 0
    for name, text in foreign.items():
        assert (out / name).read_text() == text


@pytest.mark.parametrize(
    "name", ["best.state/a", "step0000002.safetensors", ".final.writing/a", ".final.committed/a"]
)
def test_what_is_foreign_and_in_the_way_is_named(here, name):
    path = Path("new") / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(UserError, match=r"new/\S+: is in the way"):
        train(checkpoint_dir="new")
    assert path.read_text() == "mine"


def test_retention_deletes_no_tag_of_another_run(here):
    """It was copied in during the run; its `best` is not replaced either."""
    made, (values, host) = saver("mixed", keep_last_n=1)
    made.save(["step0000003"], values, host)
    made.wait()
    for ending in (".config.json", ".safetensors"):
        shutil.copy(f"out/step0000001{ending}", "mixed")
        shutil.copy(f"out/final{ending}", f"mixed/best{ending}")
    shutil.copytree("out/step0000001.state", "mixed/step0000001.state")
    shutil.copytree("out/final.state", "mixed/best.state")
    before = contents(Path("mixed"))
    values = jax.tree.map(lambda x: x, values)
    made.save(["step0000004"], values, host)
    made.wait()
    after = contents(Path("mixed"))
    assert {name for name in before if name not in after and "step0000003" not in name} == set()
    made.save(["best"], values, host)
    with pytest.raises(UserError, match="is in the way"):
        made.wait()
    digests.verify(reading.read_checkpoint("mixed/best"))


def test_what_an_older_version_left_is_recovered(here):
    """Its staging folders had no mark: a committed one names its run in its config.json."""
    out = Path("out")
    run = json.loads((out / "final.config.json").read_text())["checkpoint"]["run"]
    committed = out / ".final.committed"
    committed.mkdir()
    for name in ("final.config.json", "final.safetensors"):  # its state was moved already
        (out / name).rename(committed / name)
    protocol.recover(out, "another")
    assert committed.exists()
    protocol.recover(out, run)
    assert not committed.exists()
    digests.verify(reading.read_checkpoint(out / "final"))
    (out / ".step0000005.committed").mkdir()  # all files moved, and the folder stayed
    (out / ".step0000002.deleting").write_bytes((out / "step0000002.config.json").read_bytes())
    (out / "step0000002.config.json").unlink()
    protocol.recover(out, run)
    assert not [path for path in out.glob(".*") if path.name not in (".lock", MARK)]
    assert layout.tags(out) == ["final", "step0000001"]
    assert not (out / "step0000002.state").exists()


def test_a_save_that_an_older_version_did_not_finish_costs_no_save_of_this_one(here):
    """It has no mark. In the run's own folder it is replaced; elsewhere it is refused at once."""
    for folder, resume in (("out", "auto"), ("new", None)):
        staging = Path(folder) / ".step0000003.writing"
        staging.mkdir(parents=True)
        (staging / "step0000003.safetensors").write_text("half")
        if resume is None:
            with pytest.raises(UserError, match=r"step0000003\.writing: is in the way"):
                train(checkpoint_dir=folder, num_steps=3)
            assert (staging / "step0000003.safetensors").exists()
        else:
            assert train(resume, num_steps=3) == 0
            digests.verify(reading.read_checkpoint("out/step0000003"))


def test_a_save_that_fails_ends_the_run_after_the_next_one_is_committed(here, monkeypatch):
    """The disk may be well again: what was trained meanwhile is not lost with the failed save."""
    real, calls = saving.write_weights, []

    def full_once(folder, *args):
        calls.append(folder)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        return real(folder, *args)

    monkeypatch.setattr(saving, "write_weights", full_once)
    with pytest.raises(UserError, match="No space left on device"):
        train(checkpoint_dir="new", num_steps=50, save_every=3)
    (tag,) = layout.tags(Path("new"))
    digests.verify(reading.read_checkpoint(f"new/{tag}"))
    assert train("auto", checkpoint_dir="new", num_steps=50, save_every=3) == 0


# ----------------------------------------------------------------------- a folder stays the folder


def swapped() -> None:
    Path("run").rename("aside")
    Path("run").symlink_to("out")


def renamed() -> None:
    Path("run").rename("aside")


def unlocked() -> None:
    Path("run/.lock").unlink()


def replaced() -> None:
    """The lock is the same file, but the folder is another."""
    Path("run").rename("aside")
    Path("run").mkdir()
    os.link("aside/.lock", "run/.lock")


@pytest.mark.parametrize("accident", [swapped, renamed, unlocked, replaced])
def test_a_folder_that_is_no_longer_the_one_is_not_written(here, accident):
    made, (values, host) = saver("run")
    before = contents(Path("out"))

    def run() -> None:
        with made.open(here / "c.yaml"):
            made.save(["step0000001"], values, host)
            made.wait()
            accident()
            made.save(["best", "step0000002"], values, host)

    with pytest.raises(UserError, match="'run' is no longer the folder that this run locked"):
        run()
    assert contents(Path("out")) == before
    there = Path("run") if accident is unlocked else Path("aside")
    assert layout.tags(there) == ["step0000001"]


# ------------------------------------------------------------------------ nothing given is believed


def test_members_are_regular_files(here):
    """A FIFO does not hang, and no link is followed out of a state."""
    for name, use in (
        ("final.safetensors", lambda: load_transformer("out/final")),
        ("final.config.json", lambda: load_transformer("out/final")),
        ("final.state/_CHECKPOINT_METADATA", lambda: train("out/final", num_steps=3)),
        ("final.state/state/_METADATA", lambda: train("out/final", num_steps=3)),
        ("final.state/fifo", lambda: train("out/final", num_steps=3)),
    ):
        path = Path("out") / name
        kept = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        with pytest.raises(UserError):
            use()
        path.unlink()
        path.symlink_to("/dev/zero")
        with pytest.raises(UserError):
            use()
        path.unlink()
        if kept is not None:
            path.write_bytes(kept)
    assert train("out/final", num_steps=3) == 0


def test_an_unreadable_state_is_a_message(here):
    """For every class of error in orbax and tensorstore."""
    cfg, folder = load_config("c.yaml"), Path("out/final.state")
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one),
        jax.eval_shape(lambda: init_state(cfg, init_params(cfg))),
    )
    state.load_arrays(folder, placed)
    for path in sorted(Path("out/final.state").rglob("*")):
        if not path.is_file() or not path.stat().st_size:
            continue
        whole = path.read_bytes()
        for data in (b"", b"[" * 100_000, whole[: len(whole) // 2], b"null", None):
            path.unlink()
            if data is not None:
                path.write_bytes(data)
            with contextlib.suppress(UserError):  # and no other error
                host_state.load_host_state(folder)
                state.load_arrays(folder, placed)
            path.unlink(missing_ok=True)
            path.write_bytes(whole)


def claim(prefix: str, **changes) -> None:
    path = Path(f"{prefix}.config.json")
    config = json.loads(path.read_text())
    path.write_text(json.dumps(reading.seal(config | {"model": config["model"] | changes})))


def test_claimed_sizes_are_compared_with_the_header(here):
    """A snapshot of 10^9 layers, and of matrices that no memory holds, is refused at once."""
    config = Path("out/final.config.json")
    honest = config.read_text()
    for changes in ({"num_layers": 10**9}, {"vocab_size": 2**31 - 1}, {"num_layers": 300}):
        config.write_text(honest)
        claim("out/final", **changes)
        for use in (
            lambda: load_transformer("out/final"),
            lambda: load_jax("out/final"),
            lambda: load_pair("out/final"),
            lambda model=changes: train(
                model=model, init_from="out/final.safetensors", checkpoint_dir="a"
            ),
            lambda model=changes: train("out/final", model=model, num_steps=3),
        ):
            start = time.monotonic()
            with pytest.raises(UserError, match="the weights do not fit"):
                use()
            assert time.monotonic() - start < 10
    assert not Path("a").exists()


def test_no_tensor_is_read_where_the_header_does_not_match(here, monkeypatch):
    claim("out/final", d_model=64)

    def read(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr("light_llm.checkpoint.tensors.Reader.whole", read)
    for load in (load_transformer, load_jax):
        with pytest.raises(UserError, match=r"has shape \[131, 32\], the config says \[131, 64\]"):
            load("out/final")


def test_weights_in_another_format_are_named(here):
    weights = {key: torch.from_numpy(v) for key, v in load_file("out/final.safetensors").items()}
    save_torch({k: v.to(torch.float8_e4m3fn) for k, v in weights.items()}, "f8.safetensors")
    torch.save(weights, "model.pt")
    torch.save(weights, "model.bin", _use_new_zipfile_serialization=False)
    shutil.copy("model.pt", "zip.safetensors")
    Path("model.gguf").write_bytes(b"GGUF" + bytes(100))
    model = load_config("c.yaml").model
    for name, message in {
        "f8.safetensors": "is F8_E4M3; weights must be one of F64",
        "model.pt": "a file of torch.save, .*write its tensors to a .safetensors with",
        "model.bin": "a pickle, which is not opened here",
        "zip.safetensors": "not a whole safetensors file: it is a file of torch.save",
        "model.gguf": "a GGUF file",
    }.items():
        for use in (
            lambda name=name: load_transformer(name, model),
            lambda name=name: load_jax(name, model),
            lambda name=name: train(init_from=name, checkpoint_dir="a"),
        ):
            with pytest.raises(UserError, match=message):
                use()


def test_a_header_that_lies_is_refused(here):
    model = load_config("c.yaml").model
    for header in (b"[" * 50_000, b'{"a":{"dtype":"F32","shape":[1e9],"data_offsets":[0,4]}}'):
        Path("w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(UserError, match="not a whole safetensors file"):
            load_jax("w.safetensors", model)
    Path("w.safetensors").write_bytes(struct.pack("<Q", 2**62))
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_transformer("w.safetensors", model)


def test_a_report_is_not_believed(here):
    cfg = load_config("c.yaml")
    folder = Path("nonfinite-step2")
    folder.mkdir()
    shutil.copy("out/final.safetensors", folder / "weights.safetensors")
    report = {"step": 2, "loss": "nan", "grad_norm": "nan", "loss_scale": None}
    tokens = np.zeros((1, cfg.batch_size, cfg.seq_len + 1), np.int32)

    def write(report=report, tokens=tokens) -> None:
        (folder / "report.json").write_text(
            report if isinstance(report, str) else json.dumps(report)
        )
        np.save(folder / "tokens.npy", tokens)

    write()
    assert replay("c.yaml", folder) == 0
    for bad in ("[" * 100_000, "[]", "{}", report | {"step": "2"}, report | {"loss_scale": {}}):
        write(report=bad)
        with pytest.raises(UserError):
            replay("c.yaml", folder)
    write()
    whole = (folder / "tokens.npy").read_bytes()
    shape = str(tokens.shape).encode()
    huge = b"(1, 1, 99999999999)".ljust(len(shape))
    for data in (whole.replace(shape, huge[: len(huge)], 1), whole[:60], whole[:-4], b""):
        (folder / "tokens.npy").write_bytes(data)
        with pytest.raises(UserError, match=r"damaged|does not have this config's shape"):
            replay("c.yaml", folder)
    (folder / "tokens.npy").unlink()
    os.mkfifo(folder / "tokens.npy")
    with pytest.raises(UserError, match=r"has no tokens\.npy"):
        replay("c.yaml", folder)


# ----------------------------------------------------------------------------- probes and privacy


def test_a_leftover_probe_refuses_nobody(here):
    Path("new").mkdir()
    Path("new/.light-llm-probe").write_text("left")
    assert train(checkpoint_dir="new", num_steps=1) == 0
    assert not list(Path("new").glob(".light-llm-probe-*"))


def test_modes_follow_the_umask(here):
    mask = os.umask(0o027)
    try:
        assert train(checkpoint_dir="new", num_steps=1) == 0
        made, (values, host) = saver("direct")
        made.save(["best"], values, host)
        made.wait()
    finally:
        os.umask(mask)
    for folder in ("new", "direct"):
        for path in Path(folder).rglob("*"):
            expected = 0o750 if path.is_dir() else 0o640
            assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_the_copy_of_the_config_is_what_was_parsed(here, monkeypatch):
    prepare = run_config.__globals__["prepare"]

    def edited_meanwhile(cfg, resume):
        text.append(Path("c.yaml").read_bytes())
        Path("c.yaml").write_text("changed: true")
        return prepare(cfg, resume)

    text: list[bytes] = []
    monkeypatch.setitem(run_config.__globals__, "prepare", edited_meanwhile)
    assert train(checkpoint_dir="new", num_steps=1) == 0
    assert Path("new/c.yaml").read_bytes() == text[0]


def test_a_tag_does_not_show_where_it_was_written(here):
    """Paths in the config, which the user wrote, are absent here."""
    cfg = json.loads(Path("out/final.config.json").read_text())
    assert cfg["train_data"] == TINY["train_data"]
    for path in Path("out").rglob("*"):
        if path.is_file() and path.suffix not in (".json", ".yaml"):
            data = path.read_bytes()
            assert str(here).encode() not in data, path
            assert b"/out/" not in data, path


def test_what_orbax_writes_late_is_in_nobodys_way(tmp_path):
    """Its threads go on after a failed save, and make the folder again that was just deleted."""
    staging = tmp_path / ".best.writing"
    (staging / "best.state.orbax-checkpoint-tmp/state").mkdir(parents=True)
    protocol.start(tmp_path, "best", "a run")
    assert [path.name for path in staging.iterdir()] == [MARK]
