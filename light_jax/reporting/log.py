"""Each step's metrics: read a step late, written to the console, metrics.jsonl and W&B."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from light_jax.parallel.hosts import is_main
from light_jax.reporting.console import Reporter
from light_jax.reporting.flops import peak_flops, utilisation
from light_jax.reporting.metrics import MetricsFile
from light_jax.reporting.units import count, duration
from light_jax.reporting.wandb_run import WandbRun
from light_jax.state import Run, StepMetrics
from light_llm.errors import NonFinite, UserError


class Log:
    """Takes each step's metrics, reads them when the next step is under way, and writes them."""

    def __init__(self, run: Run, directory: Path, reporter: Reporter) -> None:
        self.run, self.reporter = run, reporter
        self.failure: UserError | None = None
        """Why the first failing line could not be written. The run ends after its step."""
        self.evaluated: Callable[[], None] = lambda: None  # called after each evaluation
        self._sinks: list[MetricsFile | WandbRun] = []
        if is_main():
            file = MetricsFile(directory, int(run.state.step), redo=run.host.evaluation_due)
            self._sinks.append(file)
            if run.cfg.use_wandb:
                wandb_run = WandbRun(run.cfg, run.host.wandb_run_id)
                run.host.wandb_run_id = wandb_run.id
                self._sinks.append(wandb_run)
        self._failed: set[MetricsFile | WandbRun] = set()
        self._pending: tuple[int, float, StepMetrics] | None = None
        self._logged_step, self._logged_time = int(run.state.step), time.perf_counter()
        self._tokens_per_second = 0.0
        peak = peak_flops(run.mesh.devices.flat[0])
        self._utilisation = utilisation(
            run.cfg.model, run.num_params, run.cfg.seq_len, peak and peak * run.mesh.size
        )

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        failures = []
        for sink in self._sinks:
            try:
                sink.close()
            except UserError as failure:
                failures.append(failure)
        if failures and error is None:
            raise failures[0]
        for also in failures:
            self.reporter.line(f"warning: {also}")

    def _write(self, line: dict[str, Any]) -> None:
        for sink in self._sinks:
            if sink in self._failed:
                continue
            try:
                sink.write(line)
            except UserError as failure:
                self._failed.add(sink)
                self.failure = self.failure or failure

    def step(self, step: int, rate: float, metrics: StepMetrics) -> None:
        """Take the learning rate and the metrics of `step`, write those of the step before."""
        self.flush()
        self._pending = (step, rate, metrics)

    def flush(self) -> None:
        """Write the metrics that are still on the device.

        Raises:
            NonFinite: the step was not finite; the weights are those before it.
        """
        if self._pending is None:
            return
        (step, rate, metrics), self._pending = self._pending, None
        bad = int(metrics.bad_step)  # reading all of them in each step would take as long again
        if bad >= 0:
            raise NonFinite(f"step {bad + 1} is not finite", bad, jax.device_get(metrics))
        if step % self.run.cfg.log_every == 0 or step == self.run.cfg.num_steps:
            self._line(step, rate, jax.device_get(metrics))
        if self.reporter.has_bar:
            self.reporter.progress(step, self._text(step, rate, float(metrics.loss)))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Write all steps so far; the time inside does not count as training time."""
        self.flush()
        start = time.perf_counter()
        yield
        self._logged_time += time.perf_counter() - start

    def _line(self, step: int, rate: float, values: StepMetrics) -> None:
        cfg, now = self.run.cfg, time.perf_counter()
        tokens = (step - self._logged_step) * cfg.tokens_per_step
        self._tokens_per_second = tokens / (now - self._logged_time)
        self._logged_step, self._logged_time = step, now
        line: dict[str, Any] = {
            "step": step,
            "time": time.time(),
            "tokens": step * cfg.tokens_per_step,
            "train/loss": float(values.mean_loss),
            "train/lr": rate,
            "train/grad_norm": float(values.grad_norm),
            "train/tokens_per_second": self._tokens_per_second,
        }
        for name, per_token in self._utilisation.items():
            line[f"train/{name}"] = self._tokens_per_second * per_token
        if cfg.dtype == "float16":
            line["train/loss_scale"] = float(values.loss_scale)
        self._write(line)
        if not self.reporter.has_bar:
            self.reporter.line(
                f"step {step}/{cfg.num_steps}  " + self._text(step, rate, float(values.mean_loss))
            )

    def validation(self, step: int, loss: float, best: bool) -> None:
        perplexity = math.inf if loss > 700 else math.exp(loss)
        self._write({"step": step, "val/loss": loss, "val/perplexity": perplexity})
        self.evaluated()
        self.reporter.line(
            f"step {step}/{self.run.cfg.num_steps}  val loss {loss:.4f}  "
            f"perplexity {perplexity:.2f}{'  (best so far)' if best else ''}"
        )

    def message(self, text: str) -> None:
        """Print a line, after the numbers of the last step."""
        self.flush()
        self.reporter.line(text)

    def _text(self, step: int, rate: float, loss: float) -> str:
        cfg, speed = self.run.cfg, self._tokens_per_second
        text = f"loss {loss:.4f}  lr {rate:.2e}"
        if speed:
            left = (cfg.num_steps - step) * cfg.tokens_per_step / speed
            text += f"  {count(speed)} tokens/s"
            if self._utilisation:
                text += f"  MFU {speed * self._utilisation['mfu']:.1%}"
            text += f"  ETA {duration(left)}"
        return text
