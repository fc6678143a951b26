"""How long a save holds the loop up, how long it takes, how much memory. Usage:

python benchmarks/checkpoint.py [--config configs/medium.yaml] [--runs 5] [--folder DIR]

The state of a config (weights and AdamW's moments) is saved as llm-train does it, on the main
thread alone, and by torch.save plus safetensors of the same tensors; and the same number of bytes
is given to write() and fsync. All to one disk, in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from conversion.mapping import table
from conversion.weights import to_torch_layout
from light_jax.checkpoint import protocol
from light_jax.checkpoint.saver import Saver
from light_jax.checkpoint.state import named_arrays, save_state
from light_jax.checkpoint.weights import gather_weights, save_weights
from light_jax.config import load_config
from light_jax.state import HostState, TrainState
from light_jax.training.step import init_params, init_state
from light_llm.checkpoint import reading
from light_llm.files import disk

TAG = "step0000001"


class Disk:
    """Each function saves the state into a fresh folder and returns the seconds it blocked."""

    def __init__(self, folder: Path, config: str) -> None:
        cfg = load_config(config)
        self.cfg = cfg.model_copy(update={"checkpoint_dir": str(folder / "run")})
        self.folder = Path(self.cfg.checkpoint_dir)
        self.state: TrainState = jax.block_until_ready(init_state(cfg, init_params(cfg)))
        self.host = HostState("benchmark", [])
        arrays = [*jax.tree.leaves(self.state.weights), *named_arrays(self.state).values()]
        self.bytes = sum(array.nbytes for array in arrays)

    def background(self) -> float:
        saver = Saver(self.cfg, None)
        began = time.perf_counter()
        saver.save([TAG], self.state, self.host)
        blocked = time.perf_counter() - began
        saver.wait()
        return blocked

    def synchronous(self) -> float:
        began = time.perf_counter()
        staging = protocol.start(self.folder, TAG, self.host.run)
        save_weights(staging, TAG, self.state.weights, self.cfg.model)
        save_state(staging / f"{TAG}.state", self.state, self.host)
        Saver(self.cfg, None).commit(staging, [TAG], reading.Record(run="benchmark"))
        return time.perf_counter() - began

    def torch(self, flush: bool) -> float:
        import torch
        from safetensors.torch import save_file

        weights, moments = self._tensors()
        began = time.perf_counter()
        save_file(weights, self.folder / "x.safetensors")
        torch.save(moments, self.folder / "x.state.pt")
        if flush:
            disk.flush(self.folder)
        return time.perf_counter() - began

    def _tensors(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The weights in PyTorch's layout, and the rest, as tensors that share jax's memory."""
        import torch

        if not hasattr(self, "_kept"):
            arrays = gather_weights(self.state.weights, self.cfg.model)
            arrays = {e.key: to_torch_layout(arrays[e.key], e) for e in table(self.cfg.model)}
            rest = {k: np.array(v) for k, v in named_arrays(self.state).items()}
            self._kept = tuple(
                {k: torch.from_numpy(np.array(v)) for k, v in part.items()}
                for part in (arrays, rest)
            )
        return self._kept  # type: ignore[return-value]

    def raw(self) -> float:
        chunk = np.random.default_rng(0).bytes(2**26)
        began = time.perf_counter()
        with (self.folder / "raw").open("wb", buffering=0) as file:
            left = self.bytes
            while left > 0:
                left -= file.write(memoryview(chunk)[: min(left, len(chunk))])
            os.fsync(file.fileno())
        return time.perf_counter() - began


@contextlib.contextmanager
def peak() -> Iterator[list[int]]:
    """Bytes of resident memory above those at the start, sampled every 5 ms."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    start, done, found = resident(), threading.Event(), [0]

    def sample() -> None:
        while not done.wait(0.005):
            found[0] = max(found[0], resident() - start)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/medium.yaml")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", default=None, help="on the disk to be measured")
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", end=", ")
    print(f"Python {platform.python_version()}, jax {jax.__version__}, commit {commit.strip()}")
    print(f"python {' '.join(sys.argv)}")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        disk = Disk(Path(name), args.config)
        runs: dict[str, Callable[[], float]] = {
            "background": disk.background,
            "synchronous": disk.synchronous,
            "torch + safetensors": lambda: disk.torch(flush=False),
            "the same, flushed": lambda: disk.torch(flush=True),
            "write() and fsync": disk.raw,
        }
        print(f"{args.config}: {disk.bytes / 1e9:.2f} GB; medians of {args.runs} runs in turn")
        disk.folder.mkdir()
        disk._tensors()
        taken: dict[str, list[tuple[float, float]]] = {label: [] for label in runs}
        memory: dict[str, int] = {}
        for number in range(args.runs + 1):  # the first warms up
            for label, run in runs.items():
                shutil.rmtree(disk.folder)
                disk.folder.mkdir()
                os.sync()
                with peak() as extra:
                    began = time.perf_counter()
                    blocked = run()
                    total = time.perf_counter() - began
                memory[label] = max(memory.get(label, 0), extra[0])  # freed memory is used again
                if number:
                    taken[label].append((blocked, total))
    middle = {
        label: (
            statistics.median(row[0] for row in rows),
            statistics.median(row[1] for row in rows),
            memory[label],
        )
        for label, rows in taken.items()
    }
    print(f"{'':22}{'blocked s':>10}{'total s':>10}{'GB/s':>8}{'of raw':>8}{'memory':>9}")
    raw = middle["write() and fsync"][1]
    for label, (blocked, total, extra_bytes) in middle.items():
        print(
            f"{label:22}{blocked:10.2f}{total:10.2f}{disk.bytes / total / 1e9:8.2f}"
            f"{raw / total:8.2f}{extra_bytes / disk.bytes:8.2f}x"
        )
    ours, sync = middle["background"], middle["synchronous"]
    print(f"blocked: {ours[0] / sync[0]:.2f} of a synchronous save, ", end="")
    print(f"{ours[0] / middle['torch + safetensors'][0]:.2f} of torch + safetensors")


if __name__ == "__main__":
    main()
