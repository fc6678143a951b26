"""The last lines of a run: what it came to, and the commands that go on from there."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path

from light_jax.reporting import sources
from light_jax.reporting.units import count, duration
from light_jax.sources import is_mixture, paths_of
from light_jax.state import Run
from light_llm.checkpoint.layout import tags
from light_llm.checkpoint.tokenizer import TOKENIZER
from light_llm.preprocess.listing import folder_of, tokenizer_beside

PROMPT = "Once upon a time"


def results(run: Run, step: int, seconds: float) -> list[str]:
    """What was trained, and the best validation loss.

    Args:
        seconds: since training began.
    """
    cfg, host, here = run.cfg, run.host, step - run.steps_done
    made = f"{here:,} step{'' if here == 1 else 's'}"
    if here != step:
        made += f" of {step:,} since the resume"
    tokens = here * cfg.tokens_per_step
    speed = f" ({count(tokens / seconds)} tokens/s)" if here and seconds > 0 else ""
    lines = [f"trained     {made}, {tokens:,} tokens, in {duration(seconds)}{speed}"]
    lines += sources.lines(run, step)
    if host.best_val_loss is not None:
        at = "" if host.best_val_step is None else f" at step {host.best_val_step:,}"
        lines.append(f"best        val loss {host.best_val_loss:.4f}{at}")
    return lines


def next_commands(run: Run, directory: Path) -> list[str]:
    """Commands to type that run, evaluate and export the model, as far as they can work here."""
    there = tags(directory)
    tag = next((name for name in ("best", "final") if name in there), None)
    if tag is None:
        return []
    cfg, prefix = run.cfg, str(directory / tag)
    torch = importlib.util.find_spec("torch") is not None
    write = ["llm-run", "--checkpoint", prefix]
    write += ["--prompt", cfg.sample_prompts[0] if cfg.sample_prompts else PROMPT]
    write += [] if torch else ["--backend", "jax"]
    data = cfg.train_data if cfg.val_data is None else cfg.val_data
    evaluate = ["llm-eval", prefix, "--data", *paths_of(data)]
    if cfg.val_data is not None and is_mixture(cfg.val_data):
        evaluate = ["llm-eval", prefix, "--val-data"]
    export = ["llm-convert", "hf", prefix, f"{directory}-hf"]
    if not _has_tokenizer(run, directory):
        shards = folder_of(run.train_stream.shards[0].path)
        if (beside := tokenizer_beside(shards)) is not None:
            write += ["--tokenizer", str(beside)]
            export += ["--tokenizer", str(beside)]
        else:
            write = []
            export.append("--no-tokenizer")
    if not torch:
        export = []
    named = {"write": write, "evaluate": evaluate, "export": export}
    return [f"{name:<12}{shlex.join(command)}" for name, command in named.items() if command]


def _has_tokenizer(run: Run, directory: Path) -> bool:
    """Whether the commands find one by themselves."""
    return run.cfg.tokenizer_path is not None or (directory / TOKENIZER).is_dir()
