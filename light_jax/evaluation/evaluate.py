"""The mean loss of a checkpoint over every window of some paths."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from light_jax.data import TokenStream, validation_batches
from light_jax.evaluation.plan import Plan, make_plan
from light_jax.evaluation.report import Report, Score
from light_jax.parallel.cluster import one_of_several
from light_llm.checkpoint.loading import import_torch
from light_llm.errors import UserError
from light_llm.lazy import importing

Result = TypeVar("Result")

BACKENDS = ("jax", "torch")

Progress = Callable[[str, int, int], None]
"""(path, windows done, all of its windows)"""
Note = Callable[[str], None]


class Model(Protocol):
    """A checkpoint's model in either framework."""

    plan: Plan
    is_main: bool
    """Of several processes, the one that reports."""
    step: int | None
    where: str
    batch_size: int
    rows: list[int] | None
    """The rows of a batch that this process gives; all if None."""

    def loss_sum(self, tokens_BS: np.ndarray, mask_B: np.ndarray) -> Any:
        """The sum of the tokens' losses in the rows of the mask; `float` waits for it."""

    def guarded(self) -> contextlib.AbstractContextManager[None]:
        """Running out of memory inside is a UserError."""

    def together(self, read: Callable[[], Result]) -> Result:
        """Read on every process; if that fails on one, all stop."""


def evaluate(
    prefix: str | Path,
    paths: Sequence[str] | None,
    *,
    backend: str = "jax",
    batch_size: int | None = None,
    seq_len: int | None = None,
    dtype: str | None = None,
    progress: Progress = lambda path, done, total: None,
    note: Note = lambda text: None,
) -> Report | None:
    """Evaluate a checkpoint as an evaluation of training does, on all windows of each path.

    Args:
        prefix: DIR/TAG, or a run's folder.
        paths: folders, files or globs of shards, each with a score of its own; None is the
            `val_data` of the checkpoint's config, each of its sources with one.
        backend: jax or torch.
        batch_size, seq_len, dtype: the checkpoint's own where they are None.
        note: is told why bits per byte are not known.

    Returns:
        The report; None on all but the first of several processes.

    Raises:
        UserError: the checkpoint or the data cannot be used, or memory runs out.
    """
    if backend not in BACKENDS:
        raise UserError(f"--backend={backend!r} must be {' or '.join(BACKENDS)}")
    make = functools.partial(
        make_plan, prefix, paths, batch_size=batch_size, seq_len=seq_len, dtype=dtype
    )
    if backend == "torch":
        return _evaluate(_on_torch(make), progress, note)
    with _part():
        return _evaluate(_on_jax(make), progress, note)


def _part() -> contextlib.AbstractContextManager[None]:
    """One of several processes tells the others of an error. Imports JAX only then."""
    if not one_of_several():
        return contextlib.nullcontext()
    with importing():
        from light_jax.parallel.hosts import taking_part
    return taking_part()


def _evaluate(model: Model, progress: Progress, note: Note) -> Report | None:
    plan = model.plan
    sums = [_loss_sum(model, path, stream, progress) for path, stream in plan.sources]
    if not model.is_main:
        return None
    scores = []
    for (path, stream), nats in zip(plan.sources, sums, strict=True):
        size = _size_of_text(plan, path, stream, note)
        scores.append((path, Score(nats, len(stream) * stream.seq_len, size)))
    cfg = plan.cfg
    return Report(plan.prefix, model.step, cfg.seq_len, cfg.dtype, model.where, scores, plan.shares)


def _on_torch(make: Callable[[], Plan]) -> Model:
    plan = make()
    import_torch()
    from light_jax.evaluation.on_torch import OnTorch

    return OnTorch(plan)


def _on_jax(make: Callable[[], Plan]) -> Model:
    # One of several joins the others first: they would wait for it if it ended before.
    plan = None if one_of_several() else make()
    with importing():
        from light_jax.evaluation.on_jax import start

    return start(make if plan is None else lambda: plan)


def _loss_sum(model: Model, path: str, stream: TokenStream, progress: Progress) -> float:
    """The sum of the losses over all windows. A batch's is read when the next is under way, so that
    the device does not wait."""
    windows, workers = len(stream), model.plan.cfg.num_workers
    steps = -(-windows // model.batch_size)
    batches = validation_batches(stream, model.batch_size, steps, model.rows, workers)
    total, unread, done = 0.0, None, 0
    progress(path, done, windows)
    with contextlib.closing(batches), model.guarded():
        while (batch := model.together(lambda: next(batches, None))) is not None:
            before, unread = unread, model.loss_sum(*batch)
            total += 0.0 if before is None else float(before)
            done = min(done + model.batch_size, windows)
            progress(path, done, windows)
        assert unread is not None, "a stream has a window"
        return total + float(unread)


def _size_of_text(plan: Plan, path: str, stream: TokenStream, note: Note) -> int | None:
    from light_jax.evaluation.text import size_of_text

    try:
        return size_of_text(plan, stream)
    except UserError as error:
        note(f"bits per byte of {path} are not known: {error}")
        return None
