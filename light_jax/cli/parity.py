"""llm-parity: the command line. Imports the rest lazily, so that --help is instant."""

from __future__ import annotations

import math
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from light_llm.cli import runner
from light_llm.errors import UserError
from light_llm.printing import say

if TYPE_CHECKING:
    from light_jax.parity.lockstep import Row

app = runner.new_app()

CONFIG_ENDINGS = (".yaml", ".yml", ".json")
PNG = Path("parity.png")


@app.command()
def command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="PREFIX|CONFIG",
            help="checkpoints/my-run/best, or with --steps a config file.",
            callback=runner.user_path,
        ),
    ],
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Train the first N steps of CONFIG in both.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(metavar="X", help="Largest relative difference.  [default: the dtype's own]"),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="PREFIX: of the matmuls.  [default: float32]"),
    ] = None,
    sequences: Annotated[
        int | None, typer.Option(metavar="N", help="PREFIX: how many.  [default: 2]")
    ] = None,
    seq_len: Annotated[
        int | None,
        typer.Option(
            metavar="T",
            help="PREFIX: tokens of each.  [default: the config's seq_len, at most 512]",
        ),
    ] = None,
    length: Annotated[int | None, typer.Option(hidden=True)] = None,
    random: Annotated[
        bool, typer.Option("--random", help="PREFIX: on random tokens, not on val_data.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="PREFIX: print every stage of every layer.")
    ] = False,
    png: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"CONFIG: where to draw it.  [default: {PNG}]",
            callback=runner.user_path,
        ),
    ] = None,
    no_png: Annotated[bool, typer.Option("--no-png", help="CONFIG: do not draw it.")] = False,
    version: Annotated[bool, runner.version_option(devices=True)] = False,
) -> int:
    """Compare the JAX and the PyTorch model: the layers of a checkpoint, or N steps of training.

    Exits with 0 if they are the same within a tolerance that is printed, with 1 if not.
    """
    seq_len = length if seq_len is None else seq_len  # --length is what it was called before
    of_prefix = {
        "--dtype": dtype,
        "--sequences": sequences,
        "--seq-len": seq_len,
        "--random": random,
        "--all": everything,
    }
    of_config = {"--png": png, "--no-png": no_png}
    _check(target, steps, tolerance, of_prefix, of_config)
    from light_jax.parallel.cache import keep_compiled

    keep_compiled()
    if steps is not None:
        return _compare_training(target, steps, tolerance, None if no_png else png or PNG)
    same = _compare_checkpoint(
        target, dtype or "float32", sequences, seq_len, random, everything, tolerance
    )
    return 0 if same else 1


def main() -> None:
    # nothing to save: Ctrl-C, or a closed output, just ends the process
    runner.run("llm-parity", app, ended_by=[signal.SIGINT, signal.SIGPIPE])


def _check(
    target: str,
    steps: int | None,
    tolerance: float | None,
    of_prefix: dict[str, Any],
    of_config: dict[str, Any],
) -> None:
    """Refuse arguments that do not go together, before anything is imported.

    Raises:
        UserError: a flag of the other comparison, a config without --steps, no PyTorch.
    """
    from importlib.util import find_spec

    is_config = target.endswith(CONFIG_ENDINGS) and not target.endswith(".config.json")
    if steps is None and is_config:
        raise UserError(
            f"{target} is a config file; add --steps N to train with it in both frameworks, or "
            "name a checkpoint (checkpoints/my-run/best)"
        )
    other = of_config if steps is None else of_prefix
    wrong = [flag for flag, value in other.items() if value not in (None, False)]
    if wrong:
        kind = "needs a config and --steps" if steps is None else "is for a checkpoint, not --steps"
        raise UserError(f"{wrong[0]} {kind}; leave it out")
    if of_config["--png"] is not None and of_config["--no-png"]:
        raise UserError("--png and --no-png exclude each other; use one")
    dtype = of_prefix["--dtype"]
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise UserError(f"--dtype={dtype!r} must be float32, bfloat16 or float16")
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise UserError(f"--tolerance={tolerance} must be 0 or more, and finite")
    if find_spec("torch") is None:
        raise UserError("llm-parity needs PyTorch; run `pip install -e '.[torch]'`")


def _compare_checkpoint(
    prefix: str,
    dtype: str,
    sequences: int | None,
    seq_len: int | None,
    random: bool,
    everything: bool,
    tolerance: float | None,
) -> bool:
    """Print the comparison of every stage. Returns whether all agree."""
    from light_jax.parity.activations import TOLERANCE, compare, first_diverging
    from light_jax.parity.checkpoint import (
        load_pair,
        read_training_config,
        sample_tokens,
        unequal_weights,
    )
    from light_jax.parity.report import stage_table, stage_verdict
    from light_llm.checkpoint.reading import tag_of

    prefix = str(tag_of(prefix))
    cfg = read_training_config(prefix)
    tokens_BT, source = sample_tokens(cfg, 2 if sequences is None else sequences, seq_len, random)
    params, torch_model = load_pair(prefix)
    bound = TOLERANCE[dtype] if tolerance is None else tolerance
    unequal = unequal_weights(params, torch_model)
    for line in (
        f"checkpoint  {prefix}",
        f"tokens      {source}",
        f"weights     {', '.join(unequal) + ' differ' if unequal else 'the same bits in both'}",
        f"matmuls     {dtype}; {versions()}",
        "",
    ):
        say(line)
    stages = compare(params, torch_model, tokens_BT, dtype)
    verdict = stage_verdict(stages, bound)
    if unequal:
        verdict = f"not the same: {len(unequal)} weights differ as they were loaded; {verdict}"
    for line in [*stage_table(stages, bound, everything), "", verdict]:
        say(line)
    return not unequal and first_diverging(stages, bound) is None


def _compare_training(config: str, steps: int, tolerance: float | None, png: Path | None) -> int:
    """Print each step as it is done, and draw them all. Returns the exit code."""
    from light_jax.config import load_config

    cfg = load_config(config)
    from light_jax.parity import report
    from light_jax.parity.lockstep import Tolerance, comparable, lockstep, tolerance_of

    if png is not None:
        report.check_png(png)
    bounds = tolerance_of(cfg) if tolerance is None else Tolerance(*(tolerance,) * 3)
    cfg, notes = comparable(cfg)
    rows: list[Row] = []
    for row in lockstep(cfg, steps):
        if not rows:  # nothing is refused from here on
            weights = ", bfloat16 weights" if cfg.bf16_model_weights else ""
            start = "seed" if cfg.init_from is None else f"init_from {cfg.init_from!r}"
            say(f"config      {config}, {cfg.optimizer.type}, {cfg.dtype}{weights}")
            say(f"start       {start}, the same weights and batches in both")
            say(f"versions    {versions()}")
            for note in notes:
                say(f"note        {note}")
            say(f"\n{report.ROW_HEADER}")
        rows.append(row)
        say(report.row_line(row, bounds))
        sys.stdout.flush()
    if png is not None:
        report.draw(rows, f"{config}: JAX and PyTorch, {cfg.optimizer.type}, {cfg.dtype}", png)
        say(f"\ndrawn       {png}")
    last = rows[-1]
    together = not last.jax.finite and not last.torch.finite
    rows = rows[:-1] if together else rows
    if rows:
        say(f"\n{report.row_verdict(rows, bounds)}")
    if together:
        say(f"\nstep {last.step} is not finite in both: the comparison ends here")
    if any(row.beyond(bounds) or not row.finite for row in rows):
        return 1
    return 3 if together else 0


def versions() -> str:
    """The frameworks' versions, and where each computes."""
    import jax
    import torch

    return (
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, torch {torch.__version__} on cpu"
    )
