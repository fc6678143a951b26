"""How fast a config trains on this machine, alone or beside the same model in a PyTorch loop.

    python benchmarks/train.py [CONFIG] [--peer torch-eager|torch-compile] [--fused] [--rounds N]
    python benchmarks/train.py --variants [--only NAME ...]

Without CONFIG: the shape that the table in benchmarks/TRAIN.md is about (vocabulary 8192, d_model
256, 4 layers, 8 heads and 2 kv heads, ffn 704, T 256, B 8, float32, AdamW, tied embeddings). Tokens
are random: no data is read, nothing is written. Each side is a process of its own, which holds the
whole machine while it runs: they take turns, a few steps a round, from the same weights and on the
same batches. The losses of the first steps are compared before anything is timed.

Prints a line of JSON a side, and the ratio of the medians. `--variants` times alibi, windows and
complex attention beside rope, in one process and in turns; its measure is CPU time, since that
changes least with what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from light_jax.config import TrainingConfig, load_config

SHAPE: dict[str, Any] = {
    "train_data": "none",
    "seq_len": 256,
    "batch_size": 8,
    "dtype": "float32",
    "optimizer": {"lr": 1e-3},
    "scheduler": {"type": "constant", "warmup_steps": 0},
    "model": {
        "vocab_size": 8192,
        "max_seq_len": 256,
        "d_model": 256,
        "num_layers": 4,
        "attention": {"variant": "gqa", "num_heads": 8, "num_kv_heads": 2},
        "ffn": {"variant": "swiglu", "expansion_factor": 704 / 256},
    },
}
VARIANTS: dict[str, dict[str, Any]] = {
    "rope, gqa": {},
    "mha": {"attention": {"variant": "mha", "num_kv_heads": None}},
    "alibi": {"positional": {"encoding": "alibi"}},
    "sliding window of 64": {"attention": {"mask_type": "sliding_window", "window_size": 64}},
    "complex": {"attention": {"variant": "complex", "num_kv_heads": None}},
    "document mask": {"attention": {"document_mask": True, "document_end": 0}},
}
FIRST = "rope, gqa"
"""The variant that the others are compared with."""
DOCUMENT = 50  # tokens of a document, on average
CHECKED = 3  # steps whose losses are compared
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2, "float16": 1e-2}  # relative


def config_of(path: str | None) -> TrainingConfig:
    return TrainingConfig.model_validate(SHAPE) if path is None else load_config(path)


def batches(cfg: TrainingConfig) -> Iterator[np.ndarray]:
    """Random tokens [A, B, S], the same for every side; with ends of documents if these count."""
    rng = np.random.default_rng(0)
    shape = (cfg.gradient_accumulation_steps, cfg.batch_size, cfg.seq_len + 1)
    while True:
        tokens_ABS = rng.integers(cfg.model.vocab_size, size=shape, dtype=np.int32)
        if cfg.model.attention.document_mask:
            tokens_ABS[rng.random(shape) < 1 / DOCUMENT] = cfg.model.attention.document_end
        yield tokens_ABS


Step = Callable[[np.ndarray], float]
"""tokens [A, B, S] -> the loss, after the update is done."""


def jax_step(cfg: TrainingConfig, weights: Path) -> tuple[Step, float]:
    """llm-train's own step and the seconds of its compilation; writes the initial weights."""
    import jax
    import jax.numpy as jnp
    from safetensors.numpy import save_file

    from conversion import to_torch
    from light_jax.parallel.devices import return_freed_memory
    from light_jax.parallel.sharding import make_mesh
    from light_jax.training.compiled import blank_state, compile_train_step
    from light_jax.training.step import init_params, init_state

    mesh = make_mesh(cfg.mesh)
    blank, shardings = blank_state(cfg, mesh)
    start = time.perf_counter()
    compiled = compile_train_step(cfg, mesh, shardings, blank)
    seconds = time.perf_counter() - start
    state = jax.jit(lambda: init_state(cfg, init_params(cfg)), out_shardings=shardings)()
    save_file(to_torch(state.weights, cfg.model), weights)
    return_freed_memory()
    rate, leaves = jnp.float32(cfg.optimizer.lr), jax.tree.leaves(state)

    def step(tokens_ABS: np.ndarray) -> float:
        nonlocal leaves
        leaves, metrics = compiled(leaves, jnp.asarray(tokens_ABS), rate)
        return float(metrics.loss)

    return step, seconds


def torch_step(cfg: TrainingConfig, weights: Path, compiled: bool, fused: bool) -> Step:
    """The twin in the loop that a PyTorch user writes."""
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file

    from light_jax.parity.reference import autocast, logits_of
    from light_llm.models.transformer import Transformer

    model = Transformer(cfg.model).train()
    model.load_state_dict(load_file(weights))
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim >= 2]},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=cfg.optimizer.lr,
        betas=(cfg.optimizer.beta1, cfg.optimizer.beta2),
        eps=cfg.optimizer.eps,
        weight_decay=cfg.optimizer.weight_decay,
        fused=fused,
    )

    def loss_of(tokens_BS: torch.Tensor) -> torch.Tensor:
        with autocast(cfg.dtype):
            hidden_BTD = model.hidden(tokens_BS[:, :-1])
        logits_BTV = logits_of(model, hidden_BTD, cfg.dtype)
        return F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BS[:, 1:].flatten())

    run = torch.compile(loss_of) if compiled else loss_of

    def step(tokens_ABS: np.ndarray) -> float:
        total = 0.0
        for tokens_BS in torch.from_numpy(tokens_ABS).long():
            loss = run(tokens_BS)
            (loss / len(tokens_ABS)).backward()
            total += loss.item()
        if cfg.optimizer.grad_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.optimizer.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        return total / len(tokens_ABS)

    return step


def side(name: str, cfg: TrainingConfig, weights: Path, fused: bool) -> None:
    """A side's process: a number of steps comes in, the seconds and losses of these go out."""
    began, compile_seconds = time.perf_counter(), None
    if name == "ours":
        step, compile_seconds = jax_step(cfg, weights)
    else:
        step = torch_step(cfg, weights, name == "torch-compile", fused)
    tokens, first = batches(cfg), None
    for line in sys.stdin:
        seconds, losses = [], []
        for _ in range(int(line)):
            batch = next(tokens)
            start = time.perf_counter()
            losses.append(step(batch))
            seconds.append(time.perf_counter() - start)
            first = first or time.perf_counter() - began
        told = {"seconds": seconds, "losses": losses, "to_first_step": first}
        print(json.dumps(told | {"compile": compile_seconds, "peak": peak_memory()}), flush=True)


def peak_memory() -> int | None:
    """The most bytes that this process held; None where the system does not say."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


class Side:
    """A side's process, seen from here."""

    def __init__(self, name: str, args: argparse.Namespace, weights: Path) -> None:
        self.name, self.seconds = name, list[float]()
        command = [sys.executable, __file__, *([args.config] if args.config else [])]
        command += ["--side", name, "--weights", str(weights)] + ["--fused"] * args.fused
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, steps: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with {self._process.wait()}")
        return dict(json.loads(line))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(args: argparse.Namespace, cfg: TrainingConfig, weights: Path) -> None:
    names = ["ours"] + ([args.peer] if args.peer else [])
    sides, losses, last = [], [], {}
    for name in names:  # ours first: it writes the weights
        sides.append(Side(name, args, weights))
        losses.append(np.array(sides[-1].run(CHECKED)["losses"]))
    apart = max(float(np.abs(other / losses[0] - 1).max()) for other in losses)
    if apart > TOLERANCE[cfg.dtype]:
        sys.exit(f"the losses of the first {CHECKED} steps differ by {apart:.1e}: {losses}")
    for _ in range(args.rounds):
        for one in sides:
            last[one.name] = told = one.run(args.steps)
            one.seconds.append(statistics.median(told["seconds"]))
    medians = {one.name: statistics.median(one.seconds) for one in sides}
    for one in sides:
        told, median = last[one.name], medians[one.name]
        row = {"side": one.name, "tokens_per_s": round(cfg.tokens_per_step / median)}
        row |= {"ms_per_step": round(1e3 * median, 1)}
        row |= {"rounds_ms": [round(1e3 * seconds, 1) for seconds in one.seconds]}
        row |= {"compile_s": told["compile"] and round(told["compile"], 1)}
        row |= {"to_first_step_s": round(told["to_first_step"], 1)}
        row |= {"peak_memory_MiB": told["peak"] and round(told["peak"] / 2**20)}
        print(json.dumps(row), flush=True)
        one.close()
    for name in names[1:]:
        print(
            f"ours / {name}: {medians[name] / medians['ours']:.2f} times its tokens/s, "
            f"{last['ours']['peak'] / last[name]['peak']:.2f} times its memory "
            f"(losses within {apart:.0e})"
        )


def compare_variants(rounds: int, only: list[str] | None) -> None:
    """The step of each variant of the built-in shape, in turns: its CPU time and its wall time."""
    steps: dict[str, tuple[Step, Iterator[np.ndarray]]] = {}
    names = [FIRST, *(only or [name for name in VARIANTS if name != FIRST])]
    cpu: dict[str, list[float]] = {name: [] for name in names}
    wall: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            changes = VARIANTS[name]
            model = {**SHAPE["model"]}
            for section, keys in changes.items():
                model[section] = {**model.get(section, {}), **keys}
            cfg = TrainingConfig.model_validate({**SHAPE, "model": model})
            steps[name] = (jax_step(cfg, Path(folder) / "weights.safetensors")[0], batches(cfg))
    for done in range(-2, rounds):  # two rounds to warm up
        for name, (step, tokens) in steps.items():
            batch = next(tokens)
            began, used = time.perf_counter(), time.process_time()
            step(batch)
            if done >= 0:
                cpu[name].append(time.process_time() - used)
                wall[name].append(time.perf_counter() - began)
    first = statistics.median(cpu[FIRST])
    for name in names:
        median = statistics.median(cpu[name])
        print(
            f"{name}: {1e3 * median:.0f} ms of CPU time, {median / first:.2f} of rope with gqa; "
            f"{1e3 * statistics.median(wall[name]):.0f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?")
    parser.add_argument("--peer", choices=["torch-eager", "torch-compile"])
    parser.add_argument("--fused", action="store_true", help="PyTorch's AdamW as one kernel")
    parser.add_argument("--variants", action="store_true", help="alibi, windows, … beside rope")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, help="of the variants")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5, help="in a round")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    cfg = config_of(args.config)
    if args.side:
        return side(args.side, cfg, args.weights, args.fused)
    print(f"Python {platform.python_version()}, {platform.processor() or platform.machine()}")
    if args.variants:
        return compare_variants(args.rounds, args.only)
    with tempfile.TemporaryDirectory() as folder:
        measure(args, cfg, Path(folder) / "weights.safetensors")
    return None


if __name__ == "__main__":
    main()
