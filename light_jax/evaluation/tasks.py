"""Tasks of lm-evaluation-harness, on a checkpoint as a folder that transformers loads."""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from light_llm.errors import UserError
from light_llm.files import given

Results = dict[str, dict[str, float]]
"""Task -> metric -> value; the error of a metric is under its name and `_stderr`."""


def run_tasks(
    prefix: Path,
    names: Sequence[str],
    *,
    dtype: str = "float32",
    batch_size: int | None = None,
    include_path: str | None = None,
) -> Results:
    """Run tasks on the checkpoint DIR/TAG in PyTorch, on the first GPU or the CPU.

    The folder of the model is temporary and as large as the weights. Data of tasks comes from the
    Hugging Face hub or its cache.

    Args:
        names: of tasks, groups or tags of lm-evaluation-harness.
        include_path: a folder with more tasks, as YAML files, which can name code to be run.

    Raises:
        UserError: lm-eval is not installed, there is no such task, or it or its data cannot be
            used.
    """
    _require_harness()
    import lm_eval
    import torch
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with _quietly("tasks cannot be listed"):
        manager = TaskManager(include_path=include_path)
    _check_names(names, manager.all_tasks)
    with tempfile.TemporaryDirectory(prefix="llm-eval-") as parent:
        folder = Path(parent) / "model"
        _export(prefix, folder)
        with _quietly(f"--tasks {','.join(names)}"):
            found = lm_eval.simple_evaluate(
                model="hf",
                model_args={"pretrained": str(folder), "dtype": dtype},
                tasks=list(names),
                batch_size=batch_size or 1,
                device="cuda" if torch.cuda.is_available() else "cpu",
                log_samples=False,
                task_manager=manager,
            )
    return {task: _numbers(values) for task, values in found["results"].items()}


def lines(results: Results) -> list[str]:
    """A row for each metric."""
    rows = [("task", "metric", "value", "stderr")]
    for task, numbers in results.items():
        for name, value in numbers.items():
            if not name.endswith("_stderr"):
                error = numbers.get(f"{name}_stderr")
                rows.append((task, name, f"{value:.4f}", "-" if error is None else f"{error:.4f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"{task:<{widths[0]}}  {name:<{widths[1]}}  {value:>{widths[2]}}  {error:>{widths[3]}}"
        for task, name, value, error in rows
    ]


def _export(prefix: Path, folder: Path) -> None:
    """
    Raises:
        UserError: a damaged checkpoint, or one whose tokenizer is not known.
    """
    import light_llm.hf  # noqa: F401  (transformers then knows our class)
    from light_llm.hf.export import export

    export(prefix, folder)
    if not (folder / "tokenizer_config.json").is_file():
        raise UserError(
            f"{prefix}: no tokenizer for transformers is known, and tasks are text; copy it to "
            f"{prefix}.tokenizer, or set tokenizer_path in the checkpoint's config"
        )


def _require_harness() -> None:
    if find_spec("lm_eval") is None:
        raise UserError(
            "--tasks needs lm-evaluation-harness, which is not installed: "
            "pip install 'light-llm-jax[eval]'"
        )
    if find_spec("torch") is None:
        raise UserError("--tasks needs PyTorch: pip install 'light-llm-jax[torch]'")


def _check_names(names: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        from difflib import get_close_matches

        near = get_close_matches(unknown[0], known, n=3)
        remedy = f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
        raise UserError(f"--tasks: there is no task {unknown[0]!r}; {remedy}")


@contextlib.contextmanager
def _quietly(what: str) -> Any:
    """What others print goes to stderr, and what they raise is a message."""
    with (
        contextlib.redirect_stdout(sys.stderr),
        given.foreign(lambda reason: f"{what}: {reason}"),
    ):
        yield


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """`acc,none` -> acc: a filter's name stays where it is not `none`."""
    numbers = {}
    for key, value in values.items():
        name, _, kind = key.partition(",")
        if isinstance(value, int | float) and kind:
            numbers[name if kind == "none" else f"{name} ({kind})"] = float(value)
    return numbers
