"""The loop: fetch, step, log, evaluate, save."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from light_jax.checkpoint import files
from light_jax.checkpoint.store import Store
from light_jax.config import load_config
from light_jax.console import Reporter, count, duration, size
from light_jax.data.loader import BatchLoader, validation_batches
from light_jax.distributed import barrier, is_main
from light_jax.flops import flops_per_token, peak_flops
from light_jax.metrics import MetricsFile
from light_jax.optimizer import learning_rate
from light_jax.run import Run, compile_steps, prepare
from light_jax.sharding import to_global
from light_jax.signals import Stopper
from light_jax.step import MAX_SKIPS, StepMetrics
from light_jax.summary import describe
from light_jax.wandb_run import WandbRun


class NonFinite(Exception):
    """The loss or the gradients stopped being finite (exit code 3)."""


def run_config(config_path: str | Path, resume: str | None = None) -> int:
    """All that `llm-train CONFIG [--resume …]` does. Returns the exit code.

    Raises:
        UserError: the config, its data or the checkpoint cannot be used; nothing was written.
        NonFinite: training stopped on a non-finite step.
    """
    run = prepare(load_config(config_path), resume)
    with Reporter() as reporter:
        for line in describe(run):
            reporter.line(line)
        done = int(run.state.step)
        if done >= run.cfg.num_steps:
            reporter.line(f"nothing to do: step {done} of {run.cfg.num_steps} is done")
            return 0
        compile_steps(run)
        if run.memory is not None:
            reporter.line(f"memory      {size(run.memory)} per device for the compiled step")
        return train(run, Path(config_path), reporter)


def train(run: Run, config_path: Path, reporter: Reporter) -> int:
    """Train from the run's state to num_steps, or to a signal. Returns the exit code."""
    cfg, store = run.cfg, Store(run.cfg, run.resumed)
    first_step = int(run.state.step)
    store.directory.mkdir(parents=True, exist_ok=True)
    with files.locked(store.directory) if is_main() else reporter:
        if is_main():
            files.recover(store.directory)
            store.copy_config(config_path)
        barrier("directory ready")
        loader = BatchLoader(
            run.train_stream,
            batch_size=cfg.batch_size,
            first_step=first_step,
            last_step=cfg.num_steps,
            accum=cfg.gradient_accumulation_steps,
            rows=run.rows,
            num_workers=cfg.num_workers,
        )
        reporter.start(first_step, cfg.num_steps)
        with Log(run, store.directory, reporter) as log, reporter, loader, Stopper() as stopper:
            for step, local_tokens in enumerate(loader, first_step + 1):
                tokens = to_global(local_tokens, run.rows, cfg.batch_size, 1, run.mesh)
                rate = np.float32(learning_rate(cfg, step - 1))
                run.state, metrics = run.train_step(run.state, tokens, rate)
                log.step(step, metrics)
                last = step == cfg.num_steps
                stop = stopper.requested(step)
                improved = False
                if run.val_stream is not None and (last or step % cfg.eval_every == 0):
                    with log.paused():
                        improved = _evaluate(run, step, log)
                tags = {
                    "best": improved,
                    files.step_tag(step): stop or step % cfg.save_every == 0,
                    "final": last,
                }
                for tag in (name for name, due in tags.items() if due):
                    with log.paused():
                        store.save(tag, run.state, run.host)
                if stop and not last:
                    assert stopper.signal is not None
                    reporter.line(f"stopped by a signal; continue with --resume auto ({step=})")
                    return 128 + stopper.signal
    return 0


def _evaluate(run: Run, step: int, log: Log) -> bool:
    """Log the mean loss over the validation tokens; True if it is the best so far."""
    assert run.val_stream is not None
    total, tokens = 0.0, 0.0
    batches = validation_batches(
        run.val_stream, run.cfg.batch_size, run.cfg.eval_steps, run.rows, run.cfg.num_workers
    )
    for batch in batches:
        shared = [to_global(part, run.rows, run.cfg.batch_size, 0, run.mesh) for part in batch]
        loss_sum, num_tokens = run.eval_step(run.state.params, *shared)
        total, tokens = total + float(loss_sum), tokens + float(num_tokens)
    loss = total / tokens
    best = run.host.best_val_loss is None or loss < run.host.best_val_loss
    if best:
        run.host.best_val_loss = loss
    log.validation(step, loss, best)
    return best


class Log:
    """Takes each step's metrics, reads them when the next step is under way, and tells them."""

    def __init__(self, run: Run, directory: Path, reporter: Reporter) -> None:
        self.run, self.reporter = run, reporter
        self._sinks: list[MetricsFile | WandbRun] = []
        if is_main():
            self._sinks.append(MetricsFile(directory, int(run.state.step)))
            if run.cfg.use_wandb:
                wandb_run = WandbRun(run.cfg, run.host.wandb_run_id)
                run.host.wandb_run_id = wandb_run.id
                self._sinks.append(wandb_run)
        self._pending: tuple[int, StepMetrics] | None = None
        self._logged_step, self._logged_time = int(run.state.step), time.perf_counter()
        self._tokens_per_second = 0.0
        peak = peak_flops(run.mesh.devices.flat[0])
        self._peak = peak and peak * run.mesh.size
        self._flops = flops_per_token(run.cfg.model, run.num_params, run.cfg.seq_len)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for sink in self._sinks:
            sink.close()

    def _write(self, line: dict[str, Any]) -> None:
        for sink in self._sinks:
            sink.write(line)

    def step(self, step: int, metrics: StepMetrics) -> None:
        """Take the metrics of `step`, tell those of the step before."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Tell the metrics that are still with the device.

        Raises:
            NonFinite: the step was not finite; the weights are those before it.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = jax.device_get(metrics)
        if values.bad_step >= 0:
            raise NonFinite(_describe_bad_step(self.run, int(values.bad_step), values))
        if step % self.run.cfg.log_every == 0:
            self._line(step, values)
        self.reporter.progress(step, self._text(step, float(values.loss)))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Tell all steps so far; what is done inside does not count as training time."""
        self.flush()
        start = time.perf_counter()
        yield
        self._logged_time += time.perf_counter() - start

    def _line(self, step: int, values: StepMetrics) -> None:
        cfg, now = self.run.cfg, time.perf_counter()
        tokens = (step - self._logged_step) * cfg.tokens_per_step
        self._tokens_per_second = tokens / (now - self._logged_time)
        self._logged_step, self._logged_time = step, now
        line: dict[str, Any] = {
            "step": step,
            "time": time.time(),
            "tokens": step * cfg.tokens_per_step,
            "train/loss": float(values.mean_loss),
            "train/lr": learning_rate(cfg, step - 1),
            "train/grad_norm": float(values.grad_norm),
            "train/tokens_per_second": self._tokens_per_second,
        }
        if cfg.dtype == "float16":
            line["train/loss_scale"] = float(values.loss_scale)
        self._write(line)
        if not self.reporter.has_bar:
            self.reporter.line(
                f"step {step}/{cfg.num_steps}  " + self._text(step, float(values.mean_loss))
            )

    def validation(self, step: int, loss: float, best: bool) -> None:
        perplexity = math.exp(loss) if loss < 700 else math.inf
        self._write({"step": step, "val/loss": loss, "val/perplexity": perplexity})
        self.reporter.line(
            f"step {step}/{self.run.cfg.num_steps}  val loss {loss:.4f}  "
            f"perplexity {perplexity:.2f}{'  (best so far)' if best else ''}"
        )

    def _text(self, step: int, loss: float) -> str:
        cfg, speed = self.run.cfg, self._tokens_per_second
        text = f"loss {loss:.4f}  lr {learning_rate(cfg, step - 1):.2e}"
        if speed:
            left = (cfg.num_steps - step) * cfg.tokens_per_step / speed
            text += f"  {count(speed)} tokens/s"
            if self._peak:
                text += f"  MFU {speed * self._flops / self._peak:.1%}"
            text += f"  ETA {duration(left)}"
        return text


def _describe_bad_step(run: Run, step: int, values: StepMetrics) -> str:
    """`step` counts from 0, as in the state."""
    cfg = run.cfg
    if np.isfinite(values.loss) and cfg.dtype == "float16":
        what = f"the gradients overflowed float16 {MAX_SKIPS} times in a row"
        remedy = "use dtype bfloat16 or float32, or a lower optimizer.lr"
    else:
        what = "the loss or the gradient norm is not finite"
        remedy = "lower optimizer.lr, or look at these rows"
    windows = cfg.gradient_accumulation_steps * cfg.batch_size
    places = run.train_stream.locate(step * windows, windows)
    rows = "\n".join(f"  {shard}: rows {first} to {last}" for shard, first, last in places)
    return (
        f"step {step + 1}: {what}; {remedy}. Nothing of this step was kept, and the last "
        f"checkpoint is intact. The batch came from\n{rows}"
    )
