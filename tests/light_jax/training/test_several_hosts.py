"""Whatever happens to one process of llm-train, the others end in time, and name it."""

from __future__ import annotations

import resource
import shutil
import signal
from pathlib import Path

import pytest
from several import ended, several, training, wait_for
from tiny_runs import BIN, TINY, column, metrics, train_command, write_config

from light_llm.checkpoint import digests, layout, reading

ENDLESS = {
    "num_steps": 10**6,
    "save_every": 50,
    "keep_last_n": 99,
    "val_data": ...,
    "scheduler": {"type": "constant"},
    "cluster_timeout": 20,
    "window_order": "shuffled",
    "model": {"num_layers": 1, "d_model": 16},
}
WITHIN = 30  # seconds: the timeout, on a busy machine


def newest(out: Path) -> int:
    steps = [int(tag.removeprefix("step")) for tag in layout.tags(out) if tag.startswith("step")]
    return max(steps, default=0)


def last_logged(out: Path) -> int:
    return column(out, "step")[-1] if (out / "metrics.jsonl").exists() else 0


def resumes_with_the_same_losses(config: Path, mesh: dict, **env: str) -> None:
    """The newest tag is whole, and a single process makes the steps after it once more."""
    out = config.parent / "out"
    step = newest(out)
    digests.verify(reading.read_checkpoint(out / f"step{step:07d}"))
    before = {line["step"]: line["train/loss"] for line in metrics(out) if "train/loss" in line}
    write_config(config, **ENDLESS | {"num_steps": step + 3, "mesh": mesh})
    train_command(config, "--resume", "auto", **env)
    after = {line["step"]: line["train/loss"] for line in metrics(out) if "train/loss" in line}
    assert list(after) == list(range(1, step + 4))  # one curve, without a gap or a repetition
    again = range(step + 1, min(max(before), step + 3) + 1)
    assert again
    for number in again:
        assert after[number] == pytest.approx(before[number], abs=1e-5)


@pytest.mark.parametrize(
    ("count", "victim", "number", "how"),
    [
        (2, 0, signal.SIGKILL, "is gone"),
        pytest.param(2, 1, signal.SIGSTOP, "gave no sign of life", marks=pytest.mark.slow),
        pytest.param(4, 0, signal.SIGSTOP, "gave no sign of life", marks=pytest.mark.slow),
        pytest.param(4, 2, signal.SIGKILL, "is gone", marks=pytest.mark.slow),
    ],
)
def test_a_host_that_dies_or_is_stopped_ends_the_others_and_the_run_goes_on_elsewhere(
    tmp_path, count, victim, number, how
):
    config = write_config(tmp_path / "c.yaml", **ENDLESS, mesh={"fsdp": -1, "data": 1})
    out = tmp_path / "out"
    with several(training(config, count=count), tmp_path, devices=2) as runs:
        wait_for(lambda: newest(out) and 5 < last_logged(out) % 50 < 40, runs)
        runs[victim].send_signal(number)
        others = [run for run in runs if run is not runs[victim]]
        codes, said = ended(others, within=WITHIN)
    assert codes == [4] * (count - 1), said
    for each in said:
        assert f"llm-train: process {victim} (" in each.splitlines()[-1]
        assert how in each.splitlines()[-1]
        assert "Traceback" not in each
    devices = 2 if count == 4 else 1
    flags = f"--xla_force_host_platform_device_count={devices}"
    resumes_with_the_same_losses(config, {"data": -1}, XLA_FLAGS=flags)


def test_a_full_disk_on_one_host_ends_all(tmp_path):
    changes = ENDLESS | {"save_every": 5, "mesh": {"fsdp": -1, "data": 1}}
    config, out = write_config(tmp_path / "c.yaml", **changes), tmp_path / "out"
    with several(training(config), tmp_path, devices=2) as runs:
        wait_for(lambda: newest(out), runs)
        resource.prlimit(runs[1].pid, resource.RLIMIT_FSIZE, (1, 1))
        codes, said = ended(runs, within=2 * WITHIN)
    assert codes == [2, 2], said
    assert "cannot be saved" in said[1]
    assert "process 1" in said[0]
    assert "Traceback" not in said[0] + said[1]
    digests.verify(reading.read_checkpoint(out / f"step{newest(out):07d}"))


def test_a_shard_that_is_bad_on_one_host_ends_all(tmp_path):
    """Its footer is whole, so that it is found in the midst of training."""
    for number in range(2):
        shutil.copytree(TINY["train_data"], tmp_path / f"shards{number}")
    for shard in (tmp_path / "shards1").glob("*.parquet"):
        content = shard.read_bytes()
        first, last = len(content) // 3, len(content) // 2
        shard.write_bytes(content[:first] + b"\xff" * (last - first) + content[last:])
    config = write_config(tmp_path / "c.yaml", **ENDLESS | {"train_data": "$SHARDS"})
    with several(
        training(config), tmp_path, env=lambda number: {"SHARDS": str(tmp_path / f"shards{number}")}
    ) as runs:
        codes, said = ended(runs, within=200)
    assert codes == [2, 2], said
    assert "shards1" in said[1]
    assert "process 1" in said[0]
    assert "Traceback" not in said[0] + said[1]


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ({"optimizer": {"lr": 0.5}}, "differs from process 0: optimizer.lr=0.5 here, 0.003 there"),
        ({"num_step": 3}, "num_step"),
        ({"train_data": TINY["val_data"]}, "shards of train_data=1 here, 5 there"),
    ],
    ids=["config", "mistake", "shards"],
)
def test_hosts_that_differ_are_refused(tmp_path, there, message):
    same = write_config(tmp_path / "a/c.yaml", val_data=...)
    other = write_config(tmp_path / "b/c.yaml", val_data=..., **there)
    with several([[BIN / "llm-train", same], [BIN / "llm-train", other]], tmp_path) as runs:
        codes, said = ended(runs, within=200)
    assert codes == [2, 2], said
    assert message in said[1]
    assert "process 1" in said[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_one_process_becomes_four_and_two(tmp_path):
    """With dropout: batches and masks are the same for any number of processes and devices."""
    changes = {"model": {"dropout": 0.1}, "scheduler": {"type": "constant"}, "keep_last_n": 99}
    changes |= {"window_order": "shuffled", "save_every": 2, "val_data": ...}
    whole = write_config(tmp_path / "whole/c.yaml", num_steps=6, **changes)
    train_command(whole)
    config = write_config(tmp_path / "parts/c.yaml", num_steps=2, **changes)
    train_command(config)
    for steps, count, mesh in ((4, 4, {"data": 2, "fsdp": 4}), (6, 2, {"data": 1, "fsdp": 4})):
        write_config(config, **changes, num_steps=steps, mesh=mesh)
        commands = training(config, "--resume", "auto", count=count)
        with several(commands, config.parent, devices=2) as runs:
            codes, said = ended(runs, within=300)
        assert codes == [0] * count, said
    parts = column(config.parent / "out", "train/loss")
    assert parts == pytest.approx(column(whole.parent / "out", "train/loss"), abs=1e-5)
