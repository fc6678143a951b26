"""A model of the Hugging Face hub -> its folder in the hub's cache."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from light_llm.checkpoint.folder import CONFIG_JSON, INDEX, SINGLE
from light_llm.checkpoint.layout import Files, locate_weights
from light_llm.errors import UserError
from light_llm.files import given
from light_llm.tokenizer.hub import offline, reachable

NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
# Weights as pickles, other formats and code stay there.
WANTED = [
    CONFIG_JSON,
    SINGLE,
    INDEX,
    "model-*.safetensors",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
]


def fetch_model(name: str, *, fetch: bool = True) -> Path:
    """Download a model's config, safetensors and tokenizer, or find them in the hub's cache.

    Args:
        fetch: whether the hub may be asked. Pass True only for a name that the user gave.

    Raises:
        UserError: the hub gave no such model, or cannot be reached and the cache has none.
    """
    from huggingface_hub import snapshot_download

    local = not fetch or not reachable()
    where = "the hub cannot be reached, and its cache has no" if local else "Hugging Face gave no"

    def explain(reason: str) -> str:
        return (
            f"{name}: there is no such folder here (looked from {Path.cwd()}), and {where} model "
            f"with this name: {reason}\nCheck the spelling and the connection (a private or gated "
            "one also needs `hf auth login`), or give a folder that holds the model"
        )

    with offline() if local else contextlib.nullcontext(), given.foreign(explain):
        folder = Path(snapshot_download(name, allow_patterns=WANTED, local_files_only=local))
    if not (folder / CONFIG_JSON).exists():  # a tokenizer's files alone may be in the cache
        raise UserError(explain(f"no {CONFIG_JSON}"))
    return folder


def starting_weights(source: str, *, fetch: bool) -> Files:
    """What `init_from` names: a checkpoint, a weights file, a Hugging Face folder or name.

    ORG/NAME is a name of the hub only where there is no folder ORG.

    Raises:
        UserError: there is nothing of this name.
    """
    parts = Path(source).parts
    if len(parts) == 2 and NAME.fullmatch(source) and not Path(parts[0]).exists():
        return locate_weights(fetch_model(source, fetch=fetch))
    return locate_weights(source)
