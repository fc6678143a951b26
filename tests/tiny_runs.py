"""What many tests share: small real runs on the reference shards, in-process or as a command."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from forked import Process
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "tests/reference"
BIN = Path(sys.executable).parent
# For a script in tests/, whose folders have the packages' names.
IMPORTS = {"PYTHONPATH": str(ROOT)}

TINY = {
    "train_data": str(REFERENCE / "training/adamw-cosine/train"),
    "val_data": str(REFERENCE / "training/adamw-cosine/val"),
    "checkpoint_dir": "out",
    "seq_len": 16,
    "batch_size": 8,
    "num_steps": 6,
    "dtype": "float32",
    "num_workers": 0,
    "log_every": 1,
    "eval_every": 3,
    "eval_steps": 2,
    "save_every": 3,
    "model": {
        "vocab_size": 131,
        "max_seq_len": 32,
        "d_model": 32,
        "num_layers": 2,
        "attention": {"num_heads": 4},
    },
    "optimizer": {"lr": 3e-3},
    "scheduler": {"warmup_steps": 2},
}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, section by section; a value of ... removes the key."""
    result = dict(base)
    for key, value in changes.items():
        if isinstance(value, dict):
            result[key] = merged(result.get(key, {}), value)
        elif value is ...:
            result.pop(key, None)
        else:
            result[key] = value
    return result


def write_config(path: Path, **changes: Any) -> Path:
    """A config of a tiny run, six steps on the reference shards, with `changes`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(merged(TINY, changes)))
    return path


def command(
    *args: Any, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Run one of the project's console scripts to its end."""
    name, *rest = map(str, args)
    line = [BIN / name, *rest]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Process(line, cwd=cwd, env=os.environ | (env or {}), text=True, **pipes) as process:
        try:
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()
    return subprocess.CompletedProcess(line, process.returncode, out, err)


def devices(count: int) -> dict[str, str]:
    """The environment of a process that makes `count` devices of this CPU."""
    flags = os.environ.get("XLA_FLAGS", "")
    return {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={count}"}


def train_command(config: Path, *args: str, **env: str) -> subprocess.CompletedProcess:
    """`llm-train CONFIG ARGS` in the config's folder, which must succeed."""
    done = command("llm-train", config, *args, cwd=config.parent, env=env)
    assert done.returncode == 0, done.stderr
    return done


def start_processes(
    config: Path,
    *args: str,
    count: int = 2,
    program: Sequence[Any] = (BIN / "llm-train",),
    **env: str,
) -> list[subprocess.Popen[str]]:
    """`llm-train CONFIG ARGS` as `count` processes of one run, in the config's folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    return [
        Process(
            [*program, config, *args],
            cwd=config.parent,
            env=os.environ
            | env
            | {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(number),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]


def keep_the_first_windows(folder: Path) -> None:
    """Cut val_data of a reference run to the windows that its recorded evaluations read: the first
    ones. An evaluation then reads these, all that there are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from light_jax.data import TokenStream

    config = yaml.safe_load((folder / "config.yaml").read_text())
    count, options = config["eval_steps"] * config["batch_size"], {"seq_len": config["seq_len"]}
    stream = TokenStream(folder / "val", **options, seed=config["seed"])
    assert count < len(stream)
    windows = stream.windows(np.arange(count))
    tokens = [*windows[:, :-1].reshape(-1).tolist(), int(windows[-1, -1])]
    (shard,) = (folder / "val").glob("*.parquet")
    pq.write_table(pa.table({"tokens": pa.array([tokens], pa.list_(pa.int32()))}), shard)
    assert len(TokenStream(folder / "val", **options, seed=config["seed"])) == count


def metrics(folder: Path, *, timeless: bool = False) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; without what depends on the clock if `timeless`."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    of_speed = {"time", "train/tokens_per_second", "train/mfu", "train/mfu_masked"}
    of_speed |= {"perf/step_seconds", "perf/data_wait", "perf/memory_bytes"}
    clock = of_speed if timeless else set()
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


def column(folder: Path, name: str) -> list[float]:
    return [line[name] for line in metrics(folder) if name in line]


def assert_same_weights(a: Path, b: Path, atol: float = 0.0) -> None:
    left, right = load_file(a), load_file(b)
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_allclose(left[key], right[key], rtol=0, atol=atol, err_msg=key)


def contents(folder: Path) -> dict[str, Any]:
    """Every file, link and folder below, but the lock, whose being there says nothing."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }
