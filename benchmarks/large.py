"""A model of 1 B parameters saved, resumed and read by PyTorch: peak memory. Usage:

python benchmarks/large.py [--folder DIR] [--layers 22] [--max-shard-size 1GB]

Float32 parameters and both of AdamW's moments are saved as llm-train does it, and the process ends;
another one verifies the tag and loads it; a third reads the weights with load_transformer. The
bits must be the same. Each process tells its largest resident memory, in all and without the pages
of mapped files, which the system can take back.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

TAG = "step0000001"


class Memory:
    """Resident memory of this process in bytes, sampled every 5 ms."""

    def __init__(self) -> None:
        self.most = self.anonymous = 0
        self._done = threading.Event()

    def __enter__(self) -> Memory:
        self.start = self._now()[1]
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            whole, anonymous = self._now()
            self.most, self.anonymous = max(self.most, whole), max(self.anonymous, anonymous)
            if self._done.wait(0.005):
                return

    @staticmethod
    def _now() -> tuple[int, int]:
        lines = Path("/proc/self/status").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines)
        whole, anonymous = (int(found[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon"))
        return whole, anonymous


@contextlib.contextmanager
def measured(what: str) -> Iterator[None]:
    began = time.perf_counter()
    with Memory() as memory:
        yield
    print(
        f"{what:34}{time.perf_counter() - began:8.1f} s   before {gib(memory.start)}   "
        f"peak {gib(memory.anonymous)}, with mapped files {gib(memory.most)}",
        flush=True,
    )


def gib(size: int) -> str:
    return f"{size / 2**30:5.2f} GiB"


def config(args: argparse.Namespace):
    from light_jax.config import TrainingConfig

    return TrainingConfig(
        train_data="unused",
        checkpoint_dir=str(Path(args.folder) / "run"),
        dtype="float32",
        seq_len=64,
        batch_size=1,
        max_shard_size=args.max_shard_size,
        model={
            "vocab_size": 32000,
            "max_seq_len": 64,
            "d_model": 2048,
            "num_layers": args.layers,
            "attention": {"num_heads": 16},
        },
    )


def checksum(arrays) -> int:
    import numpy as np

    crc = 0
    for array in arrays:
        crc = zlib.crc32(np.ascontiguousarray(array).reshape(-1).data, crc)
    return crc


def leaves_of(state) -> list:
    import jax

    from light_jax.checkpoint.state import named_arrays

    return [*jax.tree.leaves(state.weights), *named_arrays(state).values()]


def save(args: argparse.Namespace) -> None:
    import jax
    import jax.numpy as jnp

    from light_jax.checkpoint.saver import Saver
    from light_jax.state import HostState
    from light_jax.training.step import init_params, init_state

    cfg = config(args)

    @partial(jax.jit, static_argnums=(0, 1))
    def filled(shape, dtype, number):
        """Numbers of which no two arrays have the same; drawing them would take more memory."""
        counted = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
        return (counted % 1009 + number).astype(dtype)

    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: init_state(cfg, init_params(cfg))))
    with measured("the state is made"):
        made = [filled(leaf.shape, leaf.dtype, number) for number, leaf in enumerate(leaves)]
        state = jax.block_until_ready(jax.tree.unflatten(tree, made))
        del made
    arrays = leaves_of(state)
    weights = jax.tree.leaves(state.weights)
    print(
        f"{sum(a.size for a in weights):,} parameters; state {gib(sum(a.nbytes for a in arrays))}; "
        f"largest tensor {gib(max(a.nbytes for a in weights))}"
    )
    saver = Saver(cfg, None)
    with measured("save: until training goes on"):
        saver.save([TAG], state, HostState("benchmark", []))
    with measured("save: until it is committed"):
        saver.wait()
    print(f"checksum {checksum(arrays):08x}")


def resume(args: argparse.Namespace) -> None:
    import jax

    from light_jax.checkpoint import store
    from light_jax.training.step import init_params, init_state
    from light_llm.checkpoint import digests

    cfg = config(args)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.eval_shape(lambda: init_state(cfg, init_params(cfg)))
    shardings = jax.tree.map(lambda _: device, abstract)
    tag = store.read_tag(Path(cfg.checkpoint_dir) / TAG)
    with measured("resume: verify"):
        digests.verify(tag.checkpoint)
    with measured("resume: load"):
        state = jax.block_until_ready(store.load(tag, cfg, abstract, shardings))
    print(f"checksum {checksum(leaves_of(state)):08x}")


def torch(args: argparse.Namespace) -> None:
    import torch  # noqa: F401

    from light_llm.checkpoint import load_transformer

    with measured("load_transformer"):
        model = load_transformer(Path(args.folder) / "run" / TAG)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters in PyTorch")


PARTS = {"save": save, "resume": resume, "torch": torch}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default=None, help="on the disk to be measured")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--max-shard-size", default="1GB")
    parser.add_argument("--part", choices=PARTS, help="what this process does; all by default")
    args = parser.parse_args()
    if args.part:
        PARTS[args.part](args)
        return
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    print(f"{platform.machine()}, {os.cpu_count()} cores, {gib(memory)}", end=", ")
    print(f"load {os.getloadavg()[0]:.1f}, commit {commit.strip()}")
    print(f"python {' '.join(sys.argv)}", flush=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        (Path(folder) / "run").mkdir()
        options = ["--folder", folder, "--layers", str(args.layers)]
        options += ["--max-shard-size", args.max_shard_size]
        said = [
            subprocess.run(
                [sys.executable, __file__, "--part", part, *options],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout
            for part in PARTS
        ]
    print("".join(said), end="")
    sums = {line for text in said for line in text.splitlines() if line.startswith("checksum")}
    if len(sums) != 1:
        sys.exit("the resumed state is not the one that was saved")


if __name__ == "__main__":
    main()
