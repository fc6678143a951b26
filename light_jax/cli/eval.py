"""llm-eval: a checkpoint's loss on data. Imports the rest lazily, so that --help is instant."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import time
from typing import Annotated

import typer

from light_llm.cli import runner
from light_llm.errors import UserError
from light_llm.printing import printable, say, shown, tell

app = runner.new_app()

SECONDS_BETWEEN_UPDATES = 0.1
CLEAR = "\r\x1b[K"


@app.command()
def command(
    prefix: Annotated[
        str,
        typer.Argument(
            metavar="PREFIX",
            help="checkpoints/my-run/best, or a run's folder.",
            callback=runner.user_path,
        ),
    ],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="PATH", hidden=True, callback=runner.user_path)
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="PATH [PATH...]",
            help="Folders, files or globs of shards, as in train_data; one row for each.",
            callback=runner.user_path,
        ),
    ] = None,
    val_data: Annotated[
        bool,
        typer.Option(
            "--val-data", help="Instead of --data: val_data of the checkpoint's config, by source."
        ),
    ] = False,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Instead of --data: tasks of lm-eval, as hellaswag,arc_easy."
        ),
    ] = None,
    include_path: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="With --tasks: more tasks, YAML that can name code.",
            callback=runner.user_path,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    backend: Annotated[str, typer.Option(metavar="NAME", help="jax or torch.")] = "jax",
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Windows at a time.  [default: the config's]")
    ] = None,
    seq_len: Annotated[
        int | None, typer.Option(metavar="T", help="Tokens of a window.  [default: the config's]")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="float32, bfloat16 or float16, of matmuls.  [default: the config's]",
        ),
    ] = None,
    version: Annotated[bool, runner.version_option(devices=True)] = False,
) -> int:
    """Print the mean loss of a checkpoint over every window of each PATH, and of all together.

    PREFIX stands before --data, or at the end. Exits with 0, or with 3 if the loss is not finite.
    """
    if tasks is not None:
        if data or more or val_data or seq_len is not None:
            raise UserError(
                "--tasks goes with neither --data nor --val-data nor --seq-len; leave these out"
            )
        _run_tasks(prefix, tasks, include_path, batch_size, dtype, as_json)
        return 0
    if val_data and (data or more):
        given = "--data" if data else "a path"
        raise UserError(f"--val-data and {given} exclude each other; give one of them")
    if not data and not val_data:
        raise UserError("there is nothing to evaluate on; give --data PATH, or --tasks NAMES")
    if include_path is not None:
        raise UserError("--include-path belongs to --tasks; leave it out")
    prefix, *more = _prefix_first([prefix, *(more or [])])
    with _Line() as line:
        from light_jax.evaluation.evaluate import evaluate

        report = evaluate(
            prefix,
            [*data, *more] if data else None,
            backend=backend,
            batch_size=batch_size,
            seq_len=seq_len,
            dtype=dtype,
            progress=line.show,
            note=line.note,
        )
    if report is None:  # one of several processes, and not the first
        return 0
    if as_json:
        print(shown(json.dumps(report.as_json(), allow_nan=False)))
    else:
        for text in report.lines():
            say(text)
    if not math.isfinite(report.total.loss):
        tell("llm-eval: the loss is not finite")
        return 3
    return 0


def _prefix_first(words: list[str]) -> list[str]:
    """PREFIX and the further paths of --data, from words whose place among the flags is not known:
    the last is PREFIX where it alone is a checkpoint."""
    from light_llm.checkpoint.layout import locate_weights
    from light_llm.checkpoint.reading import tag_of

    def is_checkpoint(word: str) -> bool:
        try:
            locate_weights(tag_of(word))
        except UserError:
            return False
        return True

    first, last = words[0], words[-1]
    if not is_checkpoint(first) and is_checkpoint(last):
        return [last, *words[:-1]]
    return words


def _run_tasks(
    prefix: str,
    tasks: str,
    include_path: str | None,
    batch_size: int | None,
    dtype: str | None,
    as_json: bool,
) -> None:
    """Print the results of tasks. A signal takes the temporary model away."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, runner.unwind)
    from light_jax.evaluation.tasks import lines, run_tasks
    from light_llm.checkpoint.reading import read_checkpoint, tag_of

    checkpoint = read_checkpoint(tag_of(prefix))
    tag = checkpoint.files.prefix
    names = [name.strip() for name in tasks.split(",")]
    results = run_tasks(
        tag,
        names,
        include_path=include_path,
        batch_size=batch_size,
        dtype=dtype or "float32",
    )
    if as_json:
        report = {"checkpoint": str(tag), "step": checkpoint.step, "tasks": results}
        print(shown(json.dumps(report, allow_nan=False)))
    else:
        say(f"checkpoint  {tag}{'' if checkpoint.step is None else f', step {checkpoint.step}'}\n")
        for text in lines(results):
            say(text)


class _Line:
    """The progress, one line of a terminal that is drawn again; elsewhere nothing.

    A signal may end the process at any time: nothing is done that must be undone.
    """

    def __init__(self) -> None:
        self._on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._drawn = -math.inf

    def __enter__(self) -> _Line:
        self._draw("starting…")
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def show(self, path: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._drawn >= SECONDS_BETWEEN_UPDATES:
            self._drawn = now
            self._draw(f"{CLEAR}{printable(path)}  {done:,} of {total:,} windows")

    def note(self, text: str) -> None:
        self.clear()
        tell(text)

    def clear(self) -> None:
        self._draw(CLEAR)

    def _draw(self, text: str) -> None:
        if self._on_terminal:
            with contextlib.suppress(OSError):
                sys.stderr.write(text)  # its parts are printable, the rest is CLEAR
                sys.stderr.flush()


def main() -> None:
    # nothing to save: a signal, or a closed output, just ends the process
    runner.run("llm-eval", app, ended_by=[signal.SIGINT, signal.SIGPIPE])
