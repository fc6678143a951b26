"""The tokenizer of a checkpoint: the one that lies beside it, else the one that its config names.

DIR/tokenizer/       copied there at the start of the run; copied with the folder, it still works
DIR/TAG.tokenizer/   the same of one tag alone
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from light_llm.checkpoint.reading import Checkpoint
from light_llm.errors import UserError
from light_llm.models.transformer.config import TransformerConfig
from light_llm.preprocess import manifest
from light_llm.printing import tell
from light_llm.tokenizer import Tokenizer, load_tokenizer

TOKENIZER = "tokenizer"
"""The folder in a run's folder, and the ending of a tag's own."""


class Found(NamedTuple):
    """A tokenizer, and the path or name that it was loaded from."""

    tokenizer: Tokenizer
    path: str


def beside(checkpoint: Checkpoint) -> Path | None:
    """The folder beside a checkpoint that holds a tokenizer, whichever; None if there is none."""
    files = checkpoint.files
    if files.weights.is_dir():  # a Hugging Face folder names its own; what is beside is not its
        return None
    places = (files.prefix.with_name(f"{files.tag}.{TOKENIZER}"), files.directory / TOKENIZER)
    return next((place for place in places if place.is_dir()), None)


def warn_of_change(checkpoint: Checkpoint, folder: Path) -> None:
    """Warn where `beside` gave the run's copy, and it is not as the run kept it."""
    if checkpoint.record is not None and folder == checkpoint.files.directory / TOKENIZER:
        manifest.warn_of_change(folder, checkpoint.record.tokenizer, "the run")


def find_tokenizer(checkpoint: Checkpoint) -> Found | None:
    """The tokenizer beside a checkpoint, else that of its `tokenizer_path`; None without either.

    A hub name is looked for in the cache alone. A folder beside it that is no tokenizer is told on
    stderr and passed over, if there is a `tokenizer_path`.

    Raises:
        UserError: it cannot be loaded, or `tokenizer_path` is not a string.
    """
    configured, folder = checkpoint.snapshot.get("tokenizer_path"), beside(checkpoint)
    if not isinstance(configured, str | None):
        raise UserError(
            f"{checkpoint.files.prefix}: tokenizer_path={configured!r} of the checkpoint's config "
            "must be a string"
        )
    if folder is not None:
        try:
            found = Found(load_tokenizer(folder, fetch=False), str(folder))
            warn_of_change(checkpoint, folder)
            return found
        except UserError as error:
            if not configured:
                raise
            tell(f"note: {error}\n(passed over; tokenizer_path={configured!r} is read instead)")
    if not configured:
        return None
    try:
        return Found(load_tokenizer(configured, fetch=False), configured)
    except UserError as error:
        raise UserError(f"{error}\n(tokenizer_path of {checkpoint.files.prefix})") from None


def chosen_tokenizer(checkpoint: Checkpoint, path: str | None) -> Found | None:
    """The tokenizer of `path`, downloaded if it is a hub name; without one, `find_tokenizer`'s.

    Raises:
        UserError: it cannot be loaded.
    """
    return find_tokenizer(checkpoint) if path is None else Found(load_tokenizer(path), path)


def check_vocabulary(found: Found, cfg: TransformerConfig, remedy: str) -> None:
    """
    Raises:
        UserError: the tokenizer has more ids than the model.
    """
    if found.tokenizer.vocab_size > cfg.vocab_size:
        raise UserError(
            f"{found.path}: the tokenizer has {found.tokenizer.vocab_size} tokens, more than the "
            f"model's vocab_size={cfg.vocab_size}; {remedy}"
        )
