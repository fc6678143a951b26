"""What the host does while a run trains: its work per step, a save, and accumulation.

    python benchmarks/host_work.py CONFIG [--runs 5]

`startup.py` runs this for its page; it prints one row a line, tabs between the columns.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from light_jax.checkpoint.saver import Saver
from light_jax.config import TrainingConfig, load_config
from light_jax.parallel.cache import keep_compiled
from light_jax.parallel.sharding import batch_sharding, replicated
from light_jax.reporting.console import Reporter
from light_jax.reporting.units import size
from light_jax.state import Run, TrainState
from light_jax.training import loop
from light_jax.training.compiled import Steps, compile_steps
from light_jax.training.run import fill, prepare
from light_jax.training.signals import Stopper
from light_jax.training.step import make_train_step, micro_batch_grads

STEPS, WARM = 1000, 200
HERE = "`benchmarks/host_work.py`"
SAVED = {"d_model": 512, "num_layers": 8}  # some 30 M parameters, so that a copy takes a while
MICRO_BATCHES = 8


def ready(cfg: TrainingConfig, **changes: Any) -> Run:
    run = prepare(
        cfg.model_copy(update={"val_data": None, "checkpoint_dir": "inside", **changes}), None
    )
    fill(run)
    return run


def an_idle_step(run: Run) -> Any:
    """A compiled step with the arguments and results of the real one that does no arithmetic."""
    cfg, everywhere = run.cfg, replicated(run.mesh)
    tokens = jax.ShapeDtypeStruct((1, cfg.batch_size, cfg.seq_len + 1), jnp.int32)
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    _, metrics = jax.eval_shape(make_train_step(cfg, run.mesh), run.state, tokens, rate)

    structure, placed = jax.tree.structure(run.shardings), jax.tree.leaves(run.shardings)

    def step(leaves: list[jax.Array], tokens_ABS: jax.Array, lr: jax.Array) -> Any:
        state: TrainState = jax.tree.unflatten(structure, leaves)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)
        told = dataclasses.replace(nothing, bad_step=state.bad_step)
        return jax.tree.leaves(dataclasses.replace(state, step=state.step + 1)), told

    jitted = jax.jit(
        step,
        in_shardings=(placed, batch_sharding(run.mesh, 1), everywhere),
        out_shardings=(placed, everywhere),
        donate_argnums=0,
        keep_unused=True,
    )
    return jitted.lower(run.leaves, tokens, rate).compile()


def per_step(cfg: TrainingConfig, config: Path) -> float:
    """Seconds of the real loop per step, whose step does nothing."""
    shutil.rmtree("inside", ignore_errors=True)
    run = ready(cfg, num_steps=STEPS, log_every=10, save_every=STEPS)
    idle, times = an_idle_step(run), []

    def step(*args: Any) -> Any:
        times.append(time.perf_counter())
        return idle(*args)

    with Reporter() as reporter, Stopper() as stopper:
        loop.train(run, Steps(step, None, None, 0.0, False), config, reporter, stopper)
    return statistics.median(b - a for a, b in itertools.pairwise(times[WARM:]))


def of_a_save(cfg: TrainingConfig, config: Path, runs: int) -> list[str]:
    """Rows: the call of `Saver.save`, the first and the later ones; a bare copy; the whole save."""
    shutil.rmtree("inside", ignore_errors=True)
    run = ready(cfg, model=cfg.model.model_copy(update=SAVED))
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(run.state))
    held, whole, copies = [], [], []
    with Saver(run.cfg, None).open(config) as saver:
        time.sleep(2)  # as many steps pass before a run's first save
        for number in range(runs + 1):
            start = time.perf_counter()
            saver.save([f"step{number:07d}"], run.state, run.host)
            held.append(time.perf_counter() - start)
            saver.wait()
            whole.append(time.perf_counter() - start)
            start = time.perf_counter()
            jax.tree.map(lambda leaf: np.array(leaf, copy=True), run.state)
            copies.append(time.perf_counter() - start)
    copy, later = statistics.median(copies[1:]), statistics.median(held[1:])
    goal = f"a bare copy of it, {copy:.2f} s"
    what = f"a save of {size(num_bytes)} holds the loop for"
    return [
        f"{what}\t{goal}\t{later:.2f} s\t`Saver.save`, {HERE}",
        f"the first save of a run, as many bytes\t{goal}\t{held[0]:.2f} s\t`Saver.save`, {HERE}",
        f"until it is committed\t–\t{statistics.median(whole[1:]):.2f} s\t"
        f"`Saver.save` and `wait`, {HERE}",
    ]


def accumulation(cfg: TrainingConfig, runs: int) -> list[str]:
    """Rows: the step of k micro-batches to k steps of one, and to k forward and backward passes."""
    shutil.rmtree("inside", ignore_errors=True)
    calls: dict[str, Callable[[], Any]] = {}
    for count in (1, MICRO_BATCHES):
        run = ready(
            cfg,
            gradient_accumulation_steps=count,
            seq_len=64,
            batch_size=16,
            model=cfg.model.model_copy(update={"d_model": 256, "num_layers": 4}),
        )
        calls[f"{count}"] = a_step(run)
    calls["passes"] = a_pass(ready(run.cfg.model_copy(update={"gradient_accumulation_steps": 1})))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(4 * runs):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(1 if name == f"{MICRO_BATCHES}" else MICRO_BATCHES):
                done = call()
            jax.block_until_ready(done)
            times[name].append(time.perf_counter() - start)
    taken = {name: statistics.median(seconds[runs:]) for name, seconds in times.items()}
    ours, how = taken[f"{MICRO_BATCHES}"], f"the clock, in turn, the compiled programs, {HERE}"
    what = f"a step of {MICRO_BATCHES} micro-batches to {MICRO_BATCHES}"
    return [
        f"{what} steps of one\t1.03\t{ours / taken['1']:.2f}\t{how}",
        f"{what} forward and backward passes\t–\t{ours / taken['passes']:.2f}\t{how}",
    ]


def a_step(run: Run) -> Callable[[], Any]:
    """Makes the run's step once more."""
    step, leaves = compile_steps(run).train, run.leaves
    shape = (run.cfg.gradient_accumulation_steps, run.cfg.batch_size, run.cfg.seq_len + 1)
    tokens = jnp.ones(shape, jnp.int32)

    def call() -> Any:
        nonlocal leaves
        leaves, metrics = step(leaves, tokens, np.float32(0))
        return leaves, metrics

    return call


def a_pass(run: Run) -> Callable[[], Any]:
    """Computes the gradients of one micro-batch, without the update."""
    grads_of = micro_batch_grads(run.cfg, run.mesh)
    tokens = jnp.ones((run.cfg.batch_size, run.cfg.seq_len + 1), jnp.int32)
    compiled = jax.jit(lambda state, tokens: grads_of(state, jnp.int32(0), tokens)[:2])
    return functools.partial(compiled.lower(run.state, tokens).compile(), run.state, tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    keep_compiled()
    cfg = load_config(args.config)
    host = statistics.median(per_step(cfg, args.config) for _ in range(args.runs))
    how = f"the loop with a step that computes nothing, {HERE}"
    print(f"the host's work per step\t0.3 ms\t{1000 * host:.2f} ms\t{how}")
    print(*of_a_save(cfg, args.config, args.runs), sep="\n")
    print(*accumulation(cfg, args.runs), sep="\n")


if __name__ == "__main__":
    main()
