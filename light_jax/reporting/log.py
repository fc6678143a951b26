"""Each step's metrics: read a step late, written to the console, metrics.jsonl and the trackers."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from light_jax.parallel.hosts import is_main
from light_jax.reporting.console import Reporter
from light_jax.reporting.display import Numbers
from light_jax.reporting.flops import peak_flops, utilisation
from light_jax.reporting.meter import Meter, memory_bytes
from light_jax.reporting.sinks import Sinks
from light_jax.reporting.sources import taken_as_metrics
from light_jax.reporting.spikes import Monitor, Place, Spike
from light_jax.reporting.tracking import Sample
from light_jax.reporting.units import count, duration, perplexity, perplexity_form
from light_jax.state import Run, StepMetrics
from light_llm.errors import NonFinite, UserError

SMOOTHING = 0.8
"""How much of the loss that is shown comes from the lines before."""
MOST_UNREAD = 64
"""Steps whose loss and gradient norm stay on the device before they are looked at."""
COURSE = 24
"""Lines whose losses the display draws."""


class Log:
    """Takes each step's metrics, reads them when the next step is under way, and writes them."""

    def __init__(self, run: Run, directory: Path, reporter: Reporter) -> None:
        self.run, self.reporter = run, reporter
        step = int(run.state.step)
        self.evaluated: Callable[[], None] = lambda: None  # called after each evaluation
        self._sinks = Sinks(run, directory, reporter.line)
        self._pending: tuple[int, float, StepMetrics] | None = None
        threshold = run.cfg.spike_threshold
        self._monitor = None if threshold is None else Monitor(threshold, run.host.spikes)
        if self._monitor is None:
            run.host.spikes = None  # it would be old where it is turned on again
        self._unread: list[tuple[int, jax.Array, jax.Array]] = []
        self.meter = Meter(step)
        peak = peak_flops(run.mesh.devices.flat[0])
        self._utilisation = utilisation(
            run.cfg.model, run.num_params, run.cfg.seq_len, peak and peak * run.mesh.size
        )
        self._losses: deque[float] = deque(maxlen=COURSE)
        self.numbers = Numbers(step, run.cfg.num_steps)
        """What the display shows, as of the last line."""
        self._note_best()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._sinks.close(raises=error is None)

    @property
    def failure(self) -> UserError | None:
        """Why the first failing line could not be written. The run ends after its step."""
        return self._sinks.failure

    def step(self, step: int, rate: float, metrics: StepMetrics) -> None:
        """Take the learning rate and the metrics of `step`, write those of the step before."""
        self.flush()
        self._pending = (step, rate, metrics)

    def flush(self, *, show: bool = False) -> None:
        """Write the metrics that are still on the device.

        Args:
            show: the display gets them whenever it had the last ones.

        Raises:
            NonFinite: the step was not finite; the weights are those before it.
        """
        if self._pending is None:
            return
        (step, rate, metrics), self._pending = self._pending, None
        bad = int(metrics.bad_step)  # reading all of them in each step would take as long again
        if bad >= 0:
            self._look_for_spikes()
            raise NonFinite(f"step {bad + 1} is not finite", bad, jax.device_get(metrics))
        is_due = step % self.run.cfg.log_every == 0 or step == self.run.cfg.num_steps
        self._unread.append((step, metrics.loss, metrics.grad_norm))
        if is_due or len(self._unread) >= MOST_UNREAD:
            self._look_for_spikes()
        if is_due:
            self._line(step, rate, jax.device_get(metrics))
        elif self.reporter.shows(at_once=show):
            self._show(step, rate, jax.device_get(metrics))

    def _look_for_spikes(self) -> None:
        """Look at the steps since the last look, and write what stands out.

        Together, since each step's numbers alone would be one more wait for the device.
        """
        unread, self._unread = self._unread, []
        if self._monitor is None or not unread:
            return
        for step, loss, norm in jax.device_get(unread):
            values = {"loss": float(loss), "grad_norm": float(norm)}
            for spike in self._monitor.take(int(step), values):
                self._tell_spike(spike)
        self.run.host.spikes = self._monitor.state()

    def _tell_spike(self, spike: Spike) -> None:
        if not is_main():
            return
        windows = self.run.cfg.gradient_accumulation_steps * self.run.cfg.batch_size
        places: list[Place] = []
        with contextlib.suppress(UserError):  # a shard that is gone: the spike is told all the same
            places = self.run.train_stream.locate((spike.step - 1) * windows, windows)
        at = {"step": spike.step, "time": time.time()}
        self._sinks.write(at | spike.numbers(), in_file=at | spike.line(places))
        self.reporter.line(spike.text(places))

    @contextlib.contextmanager
    def paused(self, doing: str | None = None) -> Iterator[None]:
        """Write all steps so far; the time inside does not count as training time.

        Args:
            doing: what the display says meanwhile.
        """
        self.flush(show=True)
        self._look_for_spikes()  # a save that follows has what they were compared with
        with self.meter.paused(), self.reporter.doing(doing):
            yield

    def _line(self, step: int, rate: float, values: StepMetrics) -> None:
        cfg, speed = self.run.cfg, self.meter.read(step)
        tokens_per_second = speed.steps * cfg.tokens_per_step / speed.seconds
        line: dict[str, Any] = {
            "step": step,
            "time": time.time(),
            "tokens": step * cfg.tokens_per_step,
            "train/loss": float(values.mean_loss),
            "train/lr": rate,
            "train/grad_norm": float(values.grad_norm),
            "train/tokens_per_second": tokens_per_second,
        }
        for name, per_token in self._utilisation.items():
            line[f"train/{name}"] = tokens_per_second * per_token
        if values.z_loss is not None:
            line["train/z_loss"] = float(values.z_loss)
        if cfg.dtype == "float16":
            line["train/loss_scale"] = float(values.loss_scale)
        line["perf/step_seconds"] = speed.step_seconds
        line["perf/data_wait"] = speed.data_wait
        line["perf/memory_bytes"] = memory_bytes(self.run.mesh.local_devices)
        line |= taken_as_metrics(self.run, step)
        self._sinks.write(line)
        self._losses.append(line["train/loss"])
        shown, loss = self.numbers.loss, line["train/loss"]
        if shown is not None and math.isfinite(loss):
            loss = SMOOTHING * shown + (1 - SMOOTHING) * loss
        self.numbers = dataclasses.replace(
            self.numbers,
            loss=loss,
            losses=tuple(self._losses),
            tokens_per_second=tokens_per_second,
            mfu=line.get("train/mfu"),
            step_seconds=speed.step_seconds,
            data_wait=speed.data_wait,
            memory=line["perf/memory_bytes"],
        )
        self._show(step, rate, values)
        self._say(step, self._parts(step, line))

    def _show(self, step: int, rate: float, values: StepMetrics) -> None:
        """Bring the numbers of the display to this step."""
        cfg, left = self.run.cfg, None
        if self.numbers.step_seconds is not None:
            left = self.meter.left(step, cfg.num_steps, self.numbers.step_seconds)
        ends_in = cfg.num_steps - step
        evaluation = min(ends_in, cfg.eval_every - step % cfg.eval_every)
        self.numbers = dataclasses.replace(
            self.numbers,
            step=step,
            loss=float(values.mean_loss) if self.numbers.loss is None else self.numbers.loss,
            loss_now=float(values.loss),
            rate=rate,
            grad_norm=float(values.grad_norm),
            seconds_left=left,
            evaluation_in=None if self.run.val_stream is None else evaluation,
            save_in=min(ends_in, cfg.save_every - step % cfg.save_every),
        )
        self.reporter.show(self.numbers)

    def _say(self, step: int, parts: list[str]) -> None:
        """Print a line; on a terminal only the parts that fit, since the display has the rest."""
        text, width = f"step {step}/{self.run.cfg.num_steps}", self.reporter.width
        for part in parts:
            if width is not None and len(text) + 2 + len(part) > width:
                break
            text += f"  {part}"
        self.reporter.line(text)

    def _parts(self, step: int, line: dict[str, Any]) -> list[str]:
        parts = [
            f"loss {line['train/loss']:.4f}",
            f"lr {line['train/lr']:.2e}",
            f"grad norm {line['train/grad_norm']:.3g}",
            f"{count(line['train/tokens_per_second'])} tokens/s",
        ]
        if "train/mfu" in line:
            parts.append(f"MFU {line['train/mfu']:.1%}")
        left = self.meter.left(step, self.run.cfg.num_steps, line["perf/step_seconds"])
        return [*parts, f"ETA {duration(left)}"]

    def validation(
        self,
        step: int,
        loss: float,
        best: bool,
        of_sources: dict[str, float],
        of_average: float | None,
    ) -> None:
        """Write an evaluation.

        Args:
            of_sources: the loss of each, where there are several.
            of_average: the loss of the average of the weights, if there is one.
        """
        line = {"step": step, "val/loss": loss, "val/perplexity": perplexity(loss)}
        line |= {f"val/loss/{name}": of for name, of in of_sources.items()}
        also = ""
        if of_average is not None:
            line["val/loss_ema"], also = of_average, f"  of the average {of_average:.4f}"
        self._sinks.write(line)
        self.evaluated()
        each = ", ".join(f"{name} {of:.4f}" for name, of in of_sources.items())
        self.reporter.line(
            f"step {step}/{self.run.cfg.num_steps}  val loss {loss:.4f}  "
            f"{f'({each})  ' if each else ''}"
            f"perplexity {perplexity_form(loss)}{also}{'  (best so far)' if best else ''}"
        )
        self.numbers = dataclasses.replace(self.numbers, val_loss=loss)
        self._note_best()

    def _note_best(self) -> None:
        host = self.run.host
        self.numbers = dataclasses.replace(
            self.numbers, best=host.best_val_loss, best_step=host.best_val_step
        )
        self.reporter.show(self.numbers)

    def samples(self, step: int, samples: list[Sample]) -> None:
        """Print texts that the model wrote after `step`, and keep them."""
        for sample in samples:
            self.reporter.line(f"sample      {sample.prompt}{sample.text}")
        self._sinks.show(step, samples)

    def message(self, text: str) -> None:
        """Print a line, after the numbers of the last step."""
        self.flush()
        self.reporter.line(text)
