"""The run's copy of its tokenizer, so that its folder works wherever it is copied."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from light_jax.checkpoint import protocol
from light_llm.checkpoint.tokenizer import TOKENIZER
from light_llm.errors import UserError
from light_llm.files import disk, given
from light_llm.preprocess.manifest import tokenizer_fingerprint
from light_llm.printing import tell
from light_llm.tokenizer import Tokenizer, load_tokenizer


def keep_tokenizer(directory: Path, path: str | None, run: str | None) -> str | None:
    """The fingerprint of DIR/tokenizer, after `_keep` has seen to it; None where nothing is there.

    Args and Raises are those of `_keep`.
    """
    _keep(directory, path, run)
    folder = directory / TOKENIZER
    try:
        return tokenizer_fingerprint(folder) if folder.is_dir() else None
    except (UserError, OSError):  # something else than a tokenizer, as a note said
        return None


def _keep(directory: Path, path: str | None, run: str | None) -> None:
    """Copy the tokenizer to DIR/tokenizer, as its `save` writes it: whole, or not there.

    What has this name already stays. Training does without a tokenizer. So a line on stderr says
    where it cannot be loaded here, or where something else is in its place, and the run goes on.

    Args:
        directory: locked by this run.
        path: `tokenizer_path`; a Hugging Face name is looked for in the cache alone.
        run: that continues here; None if it is new here.

    Raises:
        OSError: the copy cannot be written.
    """
    target = directory / TOKENIZER
    there = os.path.lexists(target)
    if path is None:
        return
    try:
        if run is not None and there and not Path(path).expanduser().exists():
            return  # kept: the original need not be here any more
        tokenizer = load_tokenizer(path, fetch=False)
    except Exception as error:  # whatever it is, training does without
        reason = str(error).partition("\n")[0]
        _note(f"no copy of the tokenizer was made in {target}: {reason}")
        return
    if not there:
        _copy(tokenizer, directory, run or "")
    elif not _is_same(target, tokenizer):
        _note(
            f"{target} is there already and is not the tokenizer of tokenizer_path={path!r}, so no "
            "copy was made; llm-run will read the one that is there, so move it away if it is "
            "not this run's"
        )


def _note(text: str) -> None:
    with contextlib.suppress(OSError):  # a lost log must not cost the training
        tell(f"note: {text}")


def _copy(tokenizer: Tokenizer, directory: Path, run: str) -> None:
    """Save to a staging folder that shows whose it is, then move it to its place."""
    try:
        staging = protocol.start(directory, TOKENIZER, run)
    except UserError as error:  # somebody else's is in the way
        _note(f"no copy of the tokenizer was made: {error}")
        return
    try:
        tokenizer.save(staging / TOKENIZER)
        disk.flush(staging)
        os.rename(staging / TOKENIZER, directory / TOKENIZER)
        disk.sync(directory)
    finally:
        protocol.discard(staging)


def _is_same(folder: Path, tokenizer: Tokenizer) -> bool:
    """Whether a folder holds this tokenizer, written by whichever version of the libraries."""
    try:
        with tempfile.TemporaryDirectory() as ours, tempfile.TemporaryDirectory() as theirs:
            tokenizer.save(ours)
            load_tokenizer(folder, fetch=False).save(theirs)
            return _contents(Path(ours)) == _contents(Path(theirs))
    except (UserError, OSError):  # no tokenizer
        return False


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: given.read_bytes(path, given.LARGE) for path in folder.iterdir()}
