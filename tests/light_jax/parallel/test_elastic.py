"""A run goes on with any mesh and any number of processes: the same batches, the same state.

One run moves from 1 device to 8, to 2, to 2 processes, to 1 and to 4, two steps each time. Beside
it stands the run that stayed on one device.
"""

import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from reading_train import row_sums
from tiny_runs import (
    IMPORTS,
    ROOT,
    TINY,
    assert_same_weights,
    metrics,
    start_processes,
    train_command,
    write_config,
)

from light_jax.checkpoint.host_state import load_host_state
from light_jax.data import TokenStream

pytestmark = pytest.mark.slow

CHANGES = {
    "scheduler": {"type": "constant"},  # the same in a run that is to have fewer steps
    "window_order": "shuffled",
    "num_workers": 1,
    "save_every": 2,
    "eval_every": 2,
    "keep_last_n": 9,
    "model": {
        "vocab_size": 136,  # divides by 8, so that every axis is cut
        "d_model": 128,
        "num_layers": 1,
        "attention": {"num_heads": 8, "num_kv_heads": 2, "dropout": 0.1},
        "dropout": 0.1,
    },
}
# name: (last step, devices of a process, processes, mesh)
MOVES = {
    "1 to 8 devices": (4, 8, 1, {"data": 2, "fsdp": 2, "tensor": 2}),
    "8 to 2 devices": (6, 2, 1, {"data": 1, "fsdp": 2}),
    "2 devices to 2 processes": (8, 1, 2, {"data": 1, "fsdp": 2}),
    "2 processes to 1": (10, 1, 1, {}),
    "1 process to 4": (12, 1, 4, {"data": 2, "fsdp": 2}),
}
LAST = 12


@pytest.fixture(scope="module")
def stayed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stayed")
    train_command(write_config(folder / "c.yaml", num_steps=LAST, **CHANGES))
    return folder / "out"


@pytest.fixture(scope="module")
def moved(stayed, tmp_path_factory) -> tuple[Path, dict[str, list[str]]]:
    """(the folder of the run that moves, by move what each process said)."""
    folder, told = tmp_path_factory.mktemp("moved"), {}
    start = str(stayed / "step0000002")
    for name, (last, devices, processes, mesh) in MOVES.items():
        config = write_config(folder / "c.yaml", num_steps=last, mesh=mesh, **CHANGES)
        runs = start_processes(
            config,
            "--resume",
            start,
            count=processes,
            program=[sys.executable, ROOT / "tests/reading_train.py"],
            XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}",
            **IMPORTS,
        )
        told[name] = [run.communicate(timeout=200)[1] for run in runs]
        assert [run.returncode for run in runs] == [0] * processes, told[name]
        start = "auto"
    return folder / "out", told


def words(text: str, first: str) -> list[list[str]]:
    """The rest of each line that begins with this word."""
    return [line.split() for line in re.findall(rf"^{first} (.*)$", text, re.MULTILINE)]


@pytest.mark.parametrize("name", MOVES)
def test_its_processes_read_the_batches_of_one_device(moved, name):
    last, size = MOVES[name][0], TINY["batch_size"]
    stream = TokenStream(
        TINY["train_data"], seq_len=TINY["seq_len"], seed=42, window_order="shuffled"
    )
    by_process = [words(text, "batch") for text in moved[1][name]]
    for number, parts in enumerate(zip(*by_process, strict=True)):
        step = last - 2 + number
        windows = stream.windows(step * size + np.arange(size))
        assert sorted(row for part in parts for row in part) == sorted(row_sums(windows))
    assert number == 1


def told_of(lines: list[dict], step: int) -> dict[str, float]:
    return {k: v for line in lines if line["step"] == step for k, v in line.items()}


@pytest.mark.parametrize("name", MOVES)
def test_its_losses_are_those_of_one_device(stayed, moved, name):
    (out, told), (last, devices, processes, _) = moved, MOVES[name]
    assert f"devices     {devices * processes} × cpu" in told[name][0]
    for step in (last - 1, last):
        ours, whole = (told_of(metrics(folder), step) for folder in (out, stayed))
        assert ours["tokens"] == whole["tokens"]
        for loss in ("train/loss", *["val/loss"] * (step == last)):
            assert ours[loss] == pytest.approx(whole[loss], abs=1e-5), (step, loss)


def arrays(state: Path) -> dict[str, np.ndarray]:
    """The arrays of a state that any mesh wrote."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
        for name, leaf in ocp.metadata(state).metadata.items()
    }
    return {name: np.asarray(leaf) for name, leaf in ocp.load(state, wanted).items()}


@pytest.mark.parametrize("name", MOVES)
def test_nothing_of_its_state_is_lost(stayed, moved, name):
    tag = f"step{MOVES[name][0]:07d}"
    weights = [folder / f"{tag}.safetensors" for folder in (moved[0], stayed)]
    states = [folder / f"{tag}.state" for folder in (moved[0], stayed)]
    assert_same_weights(*weights, 1e-4)
    ours, whole = map(arrays, states)
    assert ours.keys() == whole.keys()
    for key, expected in whole.items():
        assert (ours[key].shape, ours[key].dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(ours[key], expected, rtol=0, atol=1e-4, err_msg=key)
    assert ours["step"] == MOVES[name][0]
    ours, whole = map(load_host_state, states)
    assert (ours.run, ours.fingerprint) == (whole.run, whole.fingerprint)
    assert ours.best_val_step == whole.best_val_step


def test_its_history_has_each_step_once(moved):
    steps = [(line["step"], "val/loss" in line) for line in metrics(moved[0])]
    expected = [(step, val) for step in range(3, LAST + 1) for val in (False, True)]
    assert steps == [(step, val) for step, val in expected if step % 2 == 0 or not val]


def test_a_process_reads_its_part_of_the_optimizer_state_alone(moved):
    """Of a state that was saved in parts. What one device saved is one piece for each array."""
    (alone,) = words(moved[1]["8 to 2 devices"][0], "read")
    for text in moved[1]["2 devices to 2 processes"]:
        (part,) = words(text, "read")
        assert int(part[0]) < 0.6 * int(alone[0])
