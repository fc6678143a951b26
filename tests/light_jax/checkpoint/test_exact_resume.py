"""Stopped and resumed at every step, a run is the uninterrupted one, to the bit."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from tiny_runs import TINY, metrics, write_config

from light_jax.reporting.log import Log
from light_jax.training import loop as trainer
from light_jax.training.loop import run_config

pytestmark = pytest.mark.compiled_fully

STEPS = 12
CHANGES = {
    "train_data": f"{TINY['train_data']}/shard_00000.parquet",
    "num_steps": STEPS,
    "seq_len": 24,
    "window_order": "shuffled",
    "gradient_accumulation_steps": 2,
    "dtype": "float16",
    "log_every": 5,
    "eval_every": 4,
    "save_every": 99,
    "num_workers": 1,
    "model": {"dropout": 0.1, "attention": {"dropout": 0.1}},
}


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    """(folder, stops) -> the run there, stopped and resumed after each of these steps."""
    compiled = []
    patch = pytest.MonkeyPatch()
    real_compile, real_step = trainer.compile_steps, Log.step

    def compile_once(run):
        if not compiled:
            compiled.append(real_compile(run))
        return compiled[0]

    patch.setattr(trainer, "compile_steps", compile_once)

    def run(name: str, stops: list[int]) -> Path:
        folder = tmp_path_factory.mktemp(name)
        config = write_config(folder / "c.yaml", checkpoint_dir=str(folder / "out"), **CHANGES)
        for stop in [*stops, STEPS]:

            def step(log, number, rate, values, stop=stop):
                if number == stop < STEPS:
                    os.kill(os.getpid(), signal.SIGTERM)
                real_step(log, number, rate, values)

            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(Log, "step", step)
                assert run_config(config, "auto") == (143 if stop < STEPS else 0)
        return folder / "out"

    yield run
    patch.undo()


def outcome(out: Path) -> dict:
    """All that a run ends with, but for the times."""
    weights = {tag: (out / f"{tag}.safetensors").read_bytes() for tag in ("best", "final")}
    steps = {
        tag: json.loads((out / f"{tag}.config.json").read_text())["checkpoint"]["step"]
        for tag in weights
    }
    state = {name: np.asarray(x).tobytes() for name, x in ocp.load(out / "final.state").items()}
    host = dict(ocp.metadata(out / "final.state").custom_metadata, run=None)
    return {"files": weights, "steps": steps, "state": state, "host": host} | {
        "metrics": metrics(out, timeless=True)
    }


@pytest.fixture(scope="module")
def whole(stopped_run):
    return outcome(stopped_run("whole", []))


def test_the_run_crosses_all_that_a_resume_could_get_wrong(whole):
    from light_jax.data import TokenStream

    stream = TokenStream(CHANGES["train_data"], seq_len=24, seed=42)
    windows = TINY["batch_size"] * 2
    assert windows * 2 < len(stream) < windows * (STEPS - 2)  # an epoch ends within
    assert [line["step"] for line in whole["metrics"]] == [4, 5, 8, 10, 12, 12]
    assert whole["host"]["best_val_loss"] == min(
        line["val/loss"] for line in whole["metrics"] if "val/loss" in line
    )


def test_at_every_step_one_after_the_other(stopped_run, whole):
    """Eleven resumes of one run."""
    assert outcome(stopped_run("chain", list(range(1, STEPS)))) == whole


@pytest.mark.parametrize("stops", [[3], [9], [4, 7]], ids=str)
def test_once_and_twice(stopped_run, whole, stops):
    assert outcome(stopped_run("stops", stops)) == whole


@pytest.mark.slow
@pytest.mark.parametrize("stop", range(1, STEPS))
def test_once_at_each_step(stopped_run, whole, stop):
    assert outcome(stopped_run("once", [stop])) == whole
