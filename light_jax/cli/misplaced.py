"""A hyperparameter on llm-train's command line: where it belongs instead."""

from __future__ import annotations

from collections.abc import Sequence


def misplaced(option: str | None, args: Sequence[str]) -> str | None:
    """What to do instead, if a key of the config was given as an option or as `key=value`.

    Args:
        option: what the command line does not know, as `--num_steps`; None if it is another fault.
        args: of the command.
    """
    words = [arg for arg in args if "=" in arg and not arg.startswith("-")]
    given = words if option is None else [option]
    if not given:
        return None
    from light_jax.config import TrainingConfig
    from light_llm.configfile import known_as

    for word in given:
        key = known_as(TrainingConfig, word.partition("=")[0].lstrip("-"))
        if key is not None:
            return (
                f"{word.partition('=')[0]} is not an option: every hyperparameter is in the config "
                f"file; edit {key} in {_file(args)}"
            )
    return None


def _file(args: Sequence[str]) -> str:
    files = (arg for arg in args if arg.endswith((".yaml", ".yml", ".json")))
    return next(files, "it, and name the file: llm-train CONFIG")
