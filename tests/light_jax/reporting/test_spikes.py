"""A step that stands out is told with the rows that it read, the same over a resume."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_runs import metrics, write_config

from light_jax.data import TokenStream
from light_jax.reporting.spikes import LEAST, WINDOW, Monitor
from light_jax.training.loop import run_config

STEP, STEPS, SEED = 281, 290, 42
CHANGES: dict[str, Any] = {
    "train_data": "data",
    "val_data": None,
    "num_steps": STEPS,
    "save_every": 260,
    "log_every": 25,
    "model": {"num_layers": 1},
    "optimizer": {"lr": 1e-2},
}


def shards(folder: Path) -> Path:
    """Text that counts, with a slip now and then, in three shards of rows of about 100 tokens."""
    rng = random.Random(1)
    (folder / "data").mkdir(parents=True)
    for shard in range(3):
        rows = []
        for _ in range(80):
            row = [rng.randrange(16)]
            while len(row) < 100 + shard:
                row.append(rng.randrange(16) if rng.random() < 0.1 else (row[-1] + 1) % 16)
            rows.append(row)
        _write(folder / f"data/shard_{shard}.parquet", rows)
    return folder


def _write(path: Path, rows: list[list[int]]) -> None:
    pq.write_table(pa.table({"tokens": pa.array(rows, pa.list_(pa.int32()))}), path)


def train(folder: Path, *args: str, **changes: Any) -> list[dict[str, Any]]:
    """A run in `folder`; the lines of its spikes."""
    write_config(folder / "c.yaml", **(CHANGES | changes))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_config("c.yaml", *args) == 0
    return [line for line in metrics(folder / "out", timeless=True) if "usual" in line]


def rows_of(step: int) -> list[tuple[str, int, int]]:
    return TokenStream("data", seq_len=16, seed=SEED).locate(8 * (step - 1), 8)


def test_a_run_without_a_bad_place_tells_of_none(tmp_path):
    assert train(shards(tmp_path)) == []


def test_rows_of_noise_are_named_and_a_resume_finds_the_same(tmp_path, monkeypatch, capsys):
    folder = shards(tmp_path / "a")
    monkeypatch.chdir(folder)
    pytest.importorskip("tensorboardX")
    for path, first, last in rows_of(STEP):
        rows = pq.read_table(path).column("tokens").to_pylist()
        for row in rows[first : last + 1]:
            row[:] = np.random.default_rng(0).integers(131, size=len(row)).tolist()
        _write(Path(path), rows)
    found = train(folder, use_tensorboard=True)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("spike ")]
    assert {line["step"] for line in found} <= {STEP - 1, STEP}  # rows end where windows do not
    assert {name for line in found for name in line} >= {"spike/loss", "spike/grad_norm"}
    loud = next(line for line in found if "spike/loss" in line)
    assert loud["spike/loss_deviations"] > 10
    assert loud["usual"][0] < loud["usual"][1] < loud["spike/loss"]
    places = [(row["shard"], row["first"], row["last"]) for row in loud["rows"]]
    assert places == rows_of(loud["step"])
    assert len(told) == len(found)
    for shard, first, last in places:
        assert f"{shard}: rows {first} to {last}" in told[0]

    (sent,) = (folder / "out/tensorboard").glob("events*")
    assert b"spike/loss" in sent.read_bytes()

    again = tmp_path / "b"
    (again / "out").mkdir(parents=True)
    shutil.copytree(folder / "data", again / "data")
    for path in (folder / "out").glob("step0000260.*"):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, again / "out" / path.name)
    monkeypatch.chdir(again)
    assert train(again, "auto") == found


def numbers(count: int, seed: int = 0) -> list[dict[str, float]]:
    draws = np.random.default_rng(seed).normal(size=(count, 2))
    return [{"loss": 3 + 0.1 * a, "grad_norm": float(np.exp(0.2 * b))} for a, b in draws.tolist()]


def test_by_hand():
    """The values 1 to 3 have median 2 and median distance 0.5."""
    monitor = Monitor(4.0)
    for step in range(LEAST):
        assert monitor.take(step, {"loss": 1 + 2 * step / (LEAST - 1), "grad_norm": 1.0}) == []
    limit = 2 + 4 * 1.4826 * 0.5
    assert monitor.take(LEAST, {"loss": limit - 0.1, "grad_norm": 1.2}) == []
    (loss, norm) = monitor.take(LEAST + 1, {"loss": limit + 0.3, "grad_norm": 1.3})
    assert (loss.name, loss.step, norm.name) == ("loss", LEAST + 1, "grad_norm")
    assert loss.deviations == pytest.approx(4 + 0.3 / 0.7413, abs=0.2)
    assert norm.deviations == pytest.approx(np.log(1.3) / 0.05)  # norms that do not vary
    # a level is told once, and is usual at last
    assert not any(
        monitor.take(step, {"loss": 9.0, "grad_norm": 9.0}) for step in range(3 * WINDOW)
    )
    assert monitor.take(0, {"loss": 9.0, "grad_norm": 99.0})[0].usual == (9.0, 9.0)


def test_noise_has_no_spikes_and_a_state_goes_on():
    whole, values = Monitor(10.0), numbers(2000)
    assert not any(whole.take(step, value) for step, value in enumerate(values))
    parted = Monitor(10.0)
    for step, value in enumerate(values):
        if step % 77 == 0:
            parted = Monitor(10.0, json.loads(json.dumps(parted.state())))
        parted.take(step, value)
    assert parted.state() == whole.state()
    assert len(whole.state()["loss"]) == WINDOW
    skipped = {"loss": 3.0, "grad_norm": float("inf")}  # float16
    assert whole.take(2000, skipped) == []
    json.dumps(whole.state(), allow_nan=False)
