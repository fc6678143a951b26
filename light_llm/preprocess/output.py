"""The folders that a run writes to: what it may write there, and what it may replace."""

from __future__ import annotations

import filecmp
import os
import stat
from pathlib import Path

from light_llm.errors import UserError
from light_llm.files import given
from light_llm.files.disk import sync, write_atomically
from light_llm.preprocess.manifest import MANIFEST, TOKENIZER, read_manifest, tokenizer_fingerprint
from light_llm.preprocess.shards import SHARD_NAME
from light_llm.tokenizer import companions
from light_llm.tokenizer.kinds import CHAR_FILE

STAGE = ".preprocess"
TOKENIZER_FILES = ("tokenizer.json", CHAR_FILE)
TOKENIZER_NAMES = frozenset(
    (
        *TOKENIZER_FILES,
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "tokenizer.model",
        "spiece.model",
        "sentencepiece.bpe.model",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
    )
)
"""Names of a tokenizer's files. A few tokenizers of transformers have more; those are recognised by
the fingerprint in the manifest."""
SPLITS = ("val", "train")


def placed(parts: tuple[str, ...]) -> list[str]:
    """What an output of the corpora `parts` holds, in the order of publication: shards come last,
    so that their tokenizer and their manifest are always there."""
    return [
        TOKENIZER,
        MANIFEST,
        *(name for part in parts for name in ([part] if part else SPLITS)),
    ]


def check_place(output: Path, flag: str = "--output") -> None:
    """
    Raises:
        UserError: `output` is a file or is not writable.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"{flag} {output}: is a file; give a folder")
    nearest = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {output}: nothing can be written in {nearest}; choose another")


def check_copy(folder: Path, output: Path, parts: tuple[str, ...]) -> None:
    """
    Raises:
        UserError: nothing can be written in `folder`, or publication replaces it.
    """
    check_place(folder, "--save-tokenizer")
    for name in (STAGE, *placed(("",)), *placed(parts)):
        if folder.resolve().is_relative_to((output / name).resolve()):
            raise UserError(
                f"--save-tokenizer {folder}: is in {output / name}, which the run itself writes; "
                "choose another folder (the tokenizer is in output/tokenizer in any case)"
            )


def check_free(folder: Path, overwrite: bool, saving: Path) -> None:
    """
    Raises:
        UserError: `folder` holds another tokenizer than `saving` (which may not exist yet), and
            `overwrite` is false.
    """
    if overwrite:
        return
    for name in sorted(TOKENIZER_NAMES):
        if os.path.lexists(folder / name) and not _agrees(folder, saving):
            raise UserError(
                f"--save-tokenizer {folder}: holds {name} already; choose another folder, or "
                "replace it with --overwrite"
            )


def _agrees(folder: Path, saving: Path) -> bool:
    """Whether `folder` holds files of `saving`, or the first of them, and no other tokenizer's."""
    names = [path.name for path in saving.iterdir()] if saving.exists() else []
    there = [name for name in {*names, *TOKENIZER_NAMES} if os.path.lexists(folder / name)]
    return all(
        name in names
        and (folder / name).is_file()
        and filecmp.cmp(folder / name, saving / name, shallow=False)
        for name in there
    )


def copy_tokenizer(saved: Path, folder: Path) -> None:
    """Copy each file atomically, and delete another tokenizer's that would be read with them."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(saved.iterdir()):
        write_atomically(folder / path.name, given.read_bytes(path, given.LARGE))
    for name in (*TOKENIZER_FILES, *companions.NAMES):
        if not (saved / name).exists():
            (folder / name).unlink(missing_ok=True)
    sync(folder)
    sync(folder.absolute().parent)


def check_output(output: Path, overwrite: bool, parts: tuple[str, ...] = ("",)) -> None:
    """
    Raises:
        UserError: `output` holds shards already (unless `overwrite`), or somebody else's files
            where those of the corpora `parts` would go.
    """
    there = present(output, parts)
    for name in there:
        check_ours(output, name, output)
    if there and not overwrite:
        raise UserError(
            f"--output {output}: holds {', '.join(there)} already; choose another folder, or "
            "replace them with --overwrite"
        )


def check_ours(folder: Path, name: str, output: Path) -> None:
    """Check that folder/name, which a previous run left or which is in the way, may be deleted.

    Raises:
        UserError: it holds what a run does not write there.
    """
    path = folder / name
    if name == MANIFEST:
        foreign, what = (None if _is_file(path) else path), "a manifest"
    elif name == TOKENIZER:
        foreign, what = _foreign_to_tokenizer(path), "a file of a tokenizer"
    else:
        entries = (at for inner in _shard_folders(folder, name) for at in _entries(inner))
        shards = SHARD_NAME.fullmatch
        foreign = next((at for at in entries if not (shards(at.name) and _is_file(at))), None)
        what = "a shard"
    if foreign is not None:
        where = path if foreign == path else foreign.parent
        thing = {MANIFEST: "it", TOKENIZER: "the tokenizer"}.get(name, "the shards")
        raise UserError(
            f"--output {output}: {foreign} is not {what}, and {where} is where {thing} would go; "
            "move it away or choose another folder"
        )


def _foreign_to_tokenizer(folder: Path) -> Path | None:
    if not folder.is_dir():
        return folder
    foreign = [at for at in _entries(folder) if at.name not in TOKENIZER_NAMES or not _is_file(at)]
    if not foreign or not all(map(_is_file, foreign)):
        return foreign[0] if foreign else None
    manifest = read_manifest(folder.parent / MANIFEST)
    known = None if manifest is None else manifest["tokenizer"].get("fingerprint")
    return None if known == tokenizer_fingerprint(folder) else foreign[0]


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; the path itself if it is not a folder."""
    return sorted(folder.iterdir()) if folder.is_dir() else [folder]


def _is_file(path: Path) -> bool:
    """Whether it is a regular file or a link, so that deleting it deletes nothing else."""
    mode = path.lstat().st_mode
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


def present(output: Path, parts: tuple[str, ...]) -> list[str]:
    """What a previous run left, or what is in the way of this one."""
    names = [*placed(("",)), *placed(parts)]
    if os.path.lexists(output / MANIFEST):
        manifest = read_manifest(output / MANIFEST)
        if manifest is None:
            raise UserError(
                f"--output {output}: {output / MANIFEST} is not a manifest of shards, and that is "
                "where it would go; move it away or choose another folder"
            )
        names += [str(row["file"]).partition("/")[0] for row in manifest["shards"]]
    return [name for name in dict.fromkeys(names) if os.path.lexists(output / name)]


def _shard_folders(output: Path, name: str) -> list[Path]:
    if name in (TOKENIZER, MANIFEST):
        return []
    folder = output / name
    if name in SPLITS or not folder.is_dir():
        return [folder]
    inner = [folder / split for split in SPLITS if (folder / split).is_dir()]
    return inner if len(inner) == len(list(folder.iterdir())) else [folder]
