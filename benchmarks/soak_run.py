"""The runs of soak.py: how they are made, started, watched, sent signals and compared."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from light_llm.checkpoint import digests, layout, reading
from light_llm.errors import UserError

BIN = Path(sys.executable).parent
EVAL_EVERY = 40
CONFIG: dict[str, Any] = {
    "train_data": "train",
    "val_data": "val",
    "checkpoint_dir": "out",
    "seq_len": 32,
    "batch_size": 8,
    "dtype": "float32",
    "num_workers": 2,
    "window_order": "shuffled",
    "log_every": 1,
    "eval_every": EVAL_EVERY,
    "eval_steps": 20,
    "save_every": 10,
    "keep_last_n": 2,
    "model": {
        "vocab_size": 128,
        "max_seq_len": 32,
        "d_model": 64,
        "num_layers": 2,
        "dropout": 0.1,
        "attention": {"num_heads": 4},
    },
    "optimizer": {"lr": 0.003},
    "scheduler": {"warmup_steps": 20},
}
OF_THE_CLOCK = re.compile(r"time|train/(tokens_per_second|mfu\w*)|perf/\w+")
"""The names in metrics.jsonl that depend on it."""


class Resources(NamedTuple):
    rss: int  # KiB
    files: int
    threads: int


class Due(Protocol):
    """What is asked of an interruption here."""

    @property
    def place(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def moment(self) -> float: ...


def prepare(folder: Path, steps: int) -> Path:
    """Shards of a language that can be learned, and the config of a run on them."""
    rng = random.Random(0)
    for name, documents in (("train/0", 600), ("train/1", 600), ("val/0", 100)):
        rows = []
        for _ in range(documents):
            ids = [rng.randrange(128)]
            while len(ids) < 200:
                ids.append((3 * ids[-1] + rng.randrange(8)) % 128)
            rows.append(ids)
        path = folder / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        tokens = pa.array(rows, pa.list_(pa.int32()))
        pq.write_table(pa.table({"tokens": tokens}), path, row_group_size=50)
    config = folder / "c.yaml"
    config.write_text(yaml.safe_dump(CONFIG | {"num_steps": steps}))
    return config


class Life:
    """One process of `llm-train CONFIG --resume auto`, in the config's folder."""

    def __init__(self, config: Path) -> None:
        self.out, self.log = config.parent / "out", config.parent / "stderr"
        self.begun, self._since = time.monotonic(), time.time()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [BIN / "llm-train", config.name, "--resume", "auto"],
                cwd=config.parent,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def ended(self) -> int | None:
        return self.process.poll()

    def wait(self) -> int:
        try:
            return self.process.wait(timeout=300)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    @property
    def training(self) -> bool:
        """Whether it has opened metrics.jsonl, just before its first step."""
        try:
            return (self.out / "metrics.jsonl").stat().st_mtime >= self._since
        except FileNotFoundError:
            return False

    def last_line(self) -> dict[str, Any]:
        """The last whole line of metrics.jsonl; empty if there is none."""
        with contextlib.suppress(FileNotFoundError):
            with (self.out / "metrics.jsonl").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                lines = file.read().split(b"\n")
            if len(lines) > 1:
                return json.loads(lines[-2])
        return {}

    def last_step(self) -> int:
        return self.last_line().get("step", 0)

    def resources(self) -> Resources | None:
        """What it holds now; None if it has ended."""
        about = Path(f"/proc/{self.process.pid}")
        try:
            status = (about / "status").read_text()
            files = len(os.listdir(about / "fd"))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return None
        found = dict(re.findall(r"^(VmRSS|Threads):\s+(\d+)", status, re.MULTILINE))
        if "VmRSS" not in found:  # it has just ended
            return None
        return Resources(int(found["VmRSS"]), files, int(found["Threads"]))

    def saving(self) -> bool:
        return any(
            name.endswith((".writing", ".committed"))
            for name in (os.listdir(self.out) if self.out.exists() else ())
        )

    def evaluating(self) -> bool:
        line = self.last_line()
        return bool(line) and line["step"] % EVAL_EVERY == 0 and "val/loss" not in line


def wait_for(life: Life, due: Due | None, startup: float) -> bool:
    """Return at the moment of the interruption, or when the process has ended: False.

    Args:
        startup: seconds that a start takes.
    """
    while life.ended() is None:
        if due is None:
            time.sleep(0.1)
        elif due.place == "start":
            if time.monotonic() - life.begun >= due.moment * startup:
                return True
            time.sleep(0.005)
        else:
            if life.training and life.last_step() >= due.step and _is_at(life, due.place):
                time.sleep(0.06 * due.moment)
                return life.ended() is None
            time.sleep(0.002)
    return False


def _is_at(life: Life, place: str) -> bool:
    return {"step": lambda: True, "save": life.saving, "evaluation": life.evaluating}[place]()


def whole_tags(out: Path) -> list[str]:
    """What is wrong with the checkpoints in a folder whose run was just killed."""
    wrong = []
    for tag in layout.tags(out) if out.exists() else ():
        try:
            digests.verify(reading.read_checkpoint(out / tag))
        except UserError as error:
            wrong.append(str(error))
    return wrong


def differences(whole: Path, other: Path) -> list[str]:
    """How the folder of an interrupted run differs from that of the undisturbed one."""
    found = [f"{name} is in one only" for name in sorted(_names(whole) ^ _names(other))]
    if (ours := _history(whole)) != (theirs := _history(other)):
        lines = sum(a != b for a, b in zip(ours, theirs, strict=False))
        found.append(f"metrics.jsonl: {lines} lines differ, {len(ours)} and {len(theirs)} in all")
    for tag in set(layout.tags(whole)) & set(layout.tags(other)):
        paths = [folder / f"{tag}.safetensors" for folder in (whole, other)]
        if paths[0].read_bytes() != paths[1].read_bytes():
            found.append(f"{tag}: weights differ")
        (arrays, host), (its_arrays, its_host) = _state(whole / tag), _state(other / tag)
        found += [f"{tag}: {n} differs" for n in arrays if arrays[n] != its_arrays.get(n)]
        found += [f"{tag}: {n} differs" for n in host if n != "run" and host[n] != its_host[n]]
    return found


def _names(out: Path) -> set[str]:
    """Names in the folder, without the notes that every resumed run leaves."""
    return set(os.listdir(out)) - {".resumed.json"}


def _history(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not OF_THE_CLOCK.fullmatch(k)} for line in lines]


def _state(prefix: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """(the bytes of each array, the host's part) of a tag's state."""
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    path = prefix.with_name(f"{prefix.name}.state")
    with warnings.catch_warnings(action="ignore"):  # it is loaded without shardings
        arrays = {name: np.asarray(value).tobytes() for name, value in ocp.load(path).items()}
    return arrays, ocp.metadata(path).custom_metadata
