"""Trackers beside W&B: what they are sent is what metrics.jsonl holds."""

import math
import subprocess
import sys

import pytest
from tiny_runs import command, metrics, write_config

from light_jax.config import TrainingConfig
from light_jax.training.loop import run_config


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, []),
        ({"tracker": "trackio"}, ["trackio"]),
        ({"tracker": "wandb", "use_wandb": True}, ["wandb"]),
        ({"tracker": "tensorboard", "use_wandb": True}, ["wandb", "tensorboard"]),
        ({"tracker": "wandb", "use_wandb": False}, ["wandb"]),
        ({"use_tensorboard": True}, ["tensorboard"]),
    ],
)
def test_a_switch_adds_its_tracker_and_takes_none_away(given, expected):
    assert TrainingConfig(train_data="x", **given).trackers == expected


def events(folder):
    """(name, step) -> value of all event files, as TensorBoard shows them after a purge."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted(folder.glob("events*"), key=lambda path: path.stat().st_mtime_ns):
        data, place = path.read_bytes(), 0
        while place < len(data):
            size = int.from_bytes(data[place : place + 8], "little")
            event = Event.FromString(data[place + 12 : place + 12 + size])
            place += 16 + size
            if event.HasField("session_log") and event.session_log.status == 1:  # START
                found = {key: value for key, value in found.items() if key[1] < event.step}
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
    return found


def test_tensorboard_has_the_numbers_once_after_a_resume_too(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path / "c.yaml", use_tensorboard=True)
    assert run_config(config) == 0
    write_config(config, use_tensorboard=True, num_steps=7)
    assert run_config(config, "out/step0000003") == 0
    expected = {
        (name, line["step"]): value
        for line in metrics(tmp_path / "out")
        for name, value in line.items()
        if name not in ("step", "time")
    }
    found = events(tmp_path / "out/tensorboard")
    assert {key for key in found if not key[0].startswith("config")} == expected.keys()
    for key, value in expected.items():
        assert math.isclose(found[key], value, rel_tol=1e-6), key


def test_trackio_goes_on_with_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # it is read at the import
    trackio = pytest.importorskip("trackio")
    monkeypatch.chdir(tmp_path)

    config = write_config(tmp_path / "c.yaml", tracker="trackio", wandb_project="tests")
    assert run_config(config) == 0
    write_config(config, tracker="trackio", wandb_project="tests", num_steps=8)
    assert run_config(config, "out/final") == 0
    (run,) = trackio.Api().runs("tests")
    from trackio.sqlite_storage import SQLiteStorage

    sent = SQLiteStorage.get_logs("tests", run.name)
    assert [(line["step"], line["train/loss"]) for line in sent if "train/loss" in line] == [
        (line["step"], line["train/loss"]) for line in metrics(tmp_path / "out") if "tokens" in line
    ]
    assert [line["step"] for line in sent if "val/loss" in line] == [3, 6, 8]


@pytest.mark.parametrize(
    "given, package, remedy",
    [
        ({"use_tensorboard": True}, "tensorboardX", "or set use_tensorboard to false"),
        ({"tracker": "trackio"}, "trackio", "or leave tracker out"),
    ],
)
def test_missing_is_an_error_before_training(tmp_path, given, package, remedy):
    """In an interpreter in which it cannot be imported."""
    config = write_config(tmp_path / "c.yaml", **given)
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"sys.argv = ['llm-train', {str(config)!r}]\nfrom light_jax.cli.train import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert f"pip install {package}" in done.stderr
    assert remedy in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_one_is_refused(tmp_path):
    config = write_config(tmp_path / "c.yaml", tracker="mlflow")
    done = command("llm-train", config, cwd=tmp_path)
    assert done.returncode == 2
    assert "tracker='mlflow' must be 'wandb', 'tensorboard' or 'trackio'" in done.stderr


def test_a_full_disk_of_a_tracker_ends_the_run_after_its_step(tmp_path, monkeypatch):
    """A tracker of the user's machine that fails, as W&B does."""
    pytest.importorskip("tensorboardX")
    from light_llm.errors import UserError

    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path / "c.yaml", tracker="tensorboard", val_data=...)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/tensorboard").write_text("a file where the folder would be")
    with pytest.raises(UserError, match=r"TensorBoard failed .*tracker: null"):
        run_config(config)
