"""Which values a config.json of Hugging Face may have: it is a file that somebody else wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from light_llm.errors import UserError

SIZES = {
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
}
"""What must be there."""
MORE_SIZES = {
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "sliding_window",
    "max_window_layers",
}
NUMBERS = {"rms_norm_eps", "rope_theta", "initializer_range", "attention_dropout"}
SWITCHES = {"tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"}


def check_types(config: Mapping[str, Any], source: str) -> None:
    """Look at the values that are read, before anything is computed with them.

    Args:
        source: the file, for messages.

    Raises:
        UserError: one of SIZES is absent or null, or a value is of another kind; all are listed.
    """
    problems = [f"{key} must be set" for key in sorted(SIZES) if config.get(key) is None]
    for key, value in config.items():
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        size = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if key in SIZES | MORE_SIZES and not size:
            problems.append(f"{key}={value!r} must be a whole number, 1 or more")
        if key in NUMBERS and not number:
            problems.append(f"{key}={value!r} must be a number")
        if key in SWITCHES and not isinstance(value, bool):
            problems.append(f"{key}={value!r} must be true or false")
        if key in ("rope_parameters", "rope_scaling") and not isinstance(value, Mapping):
            problems.append(f"{key}={value!r} must be an object")
        if key == "layer_types" and not isinstance(value, list):
            problems.append(f"{key}={value!r} must be a list")
    if problems:
        raise UserError(f"{source}: is no model's config:\n  " + "\n  ".join(problems))
