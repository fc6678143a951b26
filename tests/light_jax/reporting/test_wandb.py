"""Weights & Biases: what it is sent is what metrics.jsonl holds."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
import wandb_server
from tiny_runs import TINY, command, metrics, train_command, write_config
from wandb_server import env_of, serving
from watched_runs import started, until

from light_jax.config import TrainingConfig
from light_llm.checkpoint import layout

OFFLINE = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}


def records(folder: Path):
    """The records of an offline run's .wandb file: LevelDB's log format behind a 7-byte header."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("*.wandb")
    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # too little room for a header: padding
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def logged(folder: Path) -> list[dict]:
    lines = []
    for record in records(folder):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            line = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            lines.append({k: v for k, v in line.items() if not k.startswith("_")})
    return lines


def curve(lines: list[dict]) -> list[dict]:
    names = ("step", "train/loss", "val/loss")
    return [{k: v for k, v in line.items() if k in names} for line in lines]


def test_metrics_config_and_run_id(tmp_path):
    changes = {"use_wandb": True, "wandb_project": "tests", "wandb_run_name": "1e6", "num_steps": 4}
    config = write_config(tmp_path / "c.yaml", save_every=2, eval_every=2, **changes)
    train_command(config, **OFFLINE)
    (first,) = (tmp_path / "wandb").glob("offline-run-*")
    assert logged(first) == metrics(tmp_path / "out")
    (run,) = [r.run for r in records(first) if r.WhichOneof("record_type") == "run"]
    assert (run.project, run.display_name) == ("tests", "1e6")
    sent = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert sent["model"]["attention"]["num_kv_heads"] == 1
    assert sent["seq_len"] == 16

    write_config(config, save_every=2, eval_every=2, **changes | {"num_steps": 5})
    train_command(config, "--resume", "out/step0000002", **OFFLINE)
    (second,) = set((tmp_path / "wandb").glob("offline-run-*")) - {first}
    (again,) = [r.run for r in records(second) if r.WhichOneof("record_type") == "run"]
    assert again.run_id == run.run_id
    assert logged(second) == [line for line in metrics(tmp_path / "out") if line["step"] > 2]


def test_a_rewound_run_has_each_step_once(tmp_path):
    """Where another setting may give other numbers, nothing of them is left out."""
    changes = {"use_wandb": True, "save_every": 1, "eval_every": 2}

    def train(*args, **more):
        config = write_config(tmp_path / "c.yaml", **changes | more)
        train_command(config, *args, **server.env, NETRC=str(tmp_path / "none"))

    with serving() as server:
        train(num_steps=4, scheduler={"type": "constant"})
        assert curve(server.history) == curve(metrics(tmp_path / "out"))
        train(
            "--resume", "out/step0000002", num_steps=4, scheduler={"type": "constant"}, save_every=2
        )
        assert curve(server.history) == curve(metrics(tmp_path / "out"))
        train(
            "--resume", "out/step0000002", num_steps=6, scheduler={"type": "constant"}, save_every=2
        )
        assert len(server.history) == 6 + 6
        assert curve(server.history[6:]) == curve(metrics(tmp_path / "out"))[3:]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(signal.SIGSTOP, id="silent"),
        pytest.param(signal.SIGKILL, id="refused", marks=pytest.mark.slow),
    ],
)
def test_a_lost_connection_ends_no_run_and_its_lines_can_be_sent_later(
    tmp_path, monkeypatch, fault
):
    config = write_config(tmp_path / "c.yaml", use_wandb=True, num_steps=30, save_every=30)
    with subprocess.Popen(
        [sys.executable, wandb_server.__file__], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            env = env_of(int(server.stdout.readline())) | {"WANDB_FINISH_TIMEOUT": "2"}
            for name, value in env.items():
                monkeypatch.setenv(name, value)
            with started(config) as run:
                until(run, "step 1/")
                server.send_signal(fault)
                _, stderr = run.communicate(timeout=120)
        finally:
            server.kill()
    assert run.returncode == 0, stderr
    assert "final" in layout.tags(tmp_path / "out")
    (warning,) = [line for line in stderr.splitlines() if line.startswith("warning: ")]
    assert "Weights & Biases failed (TimeoutError: " in warning
    (later,) = re.findall(r"`wandb sync --include-online (.+?)`", warning)
    assert [line["step"] for line in metrics(tmp_path / "out") if "train/loss" in line] == [
        *range(1, 31)
    ]
    with serving() as back:
        wandb_sync = [Path(sys.executable).with_name("wandb"), "sync", "--include-online", later]
        subprocess.run(wandb_sync, cwd=tmp_path, env=os.environ | back.env, check=True)
        assert curve(back.history) == curve(metrics(tmp_path / "out"))


def test_not_logged_in_is_an_error_before_training(tmp_path):
    config = write_config(tmp_path / "c.yaml", use_wandb=True)
    env = {"WANDB_MODE": "online", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    done = command("llm-train", config, cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert "nobody is logged in" in done.stderr
    assert "WANDB_MODE=offline" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_missing_is_an_error_before_training(tmp_path):
    """In an interpreter in which wandb cannot be imported."""
    config = write_config(tmp_path / "c.yaml", use_wandb=True)
    code = (
        "import sys; sys.modules['wandb'] = None\n"
        f"sys.argv = ['llm-train', {str(config)!r}]\nfrom light_jax.cli.train import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "pip install wandb" in done.stderr
    assert not (tmp_path / "out").exists()


def test_without_it_nothing_is_written(tmp_path):
    config = write_config(tmp_path / "c.yaml", num_steps=2, val_data=...)
    train_command(config)
    assert not (tmp_path / "wandb").exists()


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"WANDB_MODE": "online", "WANDB_API_KEY": "abc"}, "AuthenticationError: .* has 3"),
        ({"WANDB_MODE": "on"}, "ValidationError: .*'on'"),
        pytest.param(
            {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": 40 * "a"},
            "AuthenticationError: .*127.0.0.1:9",
            marks=pytest.mark.slow,  # wandb tries for ten seconds
        ),
    ],
)
def test_what_wandb_refuses_is_one_message_before_training(tmp_path, settings, reason):
    config = write_config(tmp_path / "c.yaml", use_wandb=True)
    env = {"WANDB_MODE": "online", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    ended = command("llm-train", config, cwd=tmp_path, env=env | settings)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    (message,) = [line for line in ended.stderr.splitlines() if line.startswith("llm-train: ")]
    assert re.search(f"use_wandb=True but Weights & Biases refuses \\({reason}", message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["team/proj", "", "x" * 129, "a#b", "50%", "a\\b", "a?", "a:b"])
def test_a_project_is_legal_where_wandbs_own_settings_take_it(name):
    """They alone take the empty one; where nothing is sent, any name will do."""
    assert TrainingConfig(**TINY | {"wandb_project": name}).wandb_project == name
    with pytest.raises(ValueError, match=r"wandb_project=.* Weights & Biases takes 1 to 128"):
        TrainingConfig(**TINY | {"wandb_project": name, "use_wandb": True})
    if name:
        with pytest.raises(wandb.errors.UsageError):
            wandb.Settings(project=name)
    for legal in ("light-llm", "ä b", "x" * 128):
        wandb.Settings(project=legal)
        assert TrainingConfig(**TINY | {"wandb_project": legal, "use_wandb": True})
