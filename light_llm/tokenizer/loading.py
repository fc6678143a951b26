"""Loading a tokenizer: what was saved here, a Hugging Face folder or file, or a name of the hub."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

from light_llm.errors import UserError
from light_llm.files import given
from light_llm.tokenizer import companions
from light_llm.tokenizer.hub import check_link, offline, reachable
from light_llm.tokenizer.kinds import (
    CHAR_FILE,
    CharTokenizer,
    PythonTokenizer,
    SubwordTokenizer,
    Tokenizer,
)
from light_llm.tokenizer.notes import note

_MAIN_FILES = ("tokenizer.json", CHAR_FILE)
# A folder without tokenizer.json is a tokenizer to transformers if it has one of these.
_LEGACY_FILES = (
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
LARGEST_ID = 2**31  # shards hold int32
READERS = "sentencepiece tiktoken"
"""Packages with which transformers reads the two kinds of tokenizer.model."""


def load_tokenizer(path: str | Path, *, fetch: bool = True) -> Tokenizer:
    """Load what `save` wrote, any Hugging Face tokenizer folder or file, or a hub name.

    Its tokenizer.json is taken as it is, by name as by folder, with the tokens that the files
    beside it add. The first and last tokens are those that these files name or, where none names
    any, special tokens with a usual name (`</s>`, …). What is not as a file says is told on stderr.
    No code from the folder or the hub is ever run.

    Args:
        fetch: whether a hub name may be downloaded; else only the hub's cache is searched. Pass
            True only for a name that the user gave, never for one from somebody else's file.

    Raises:
        UserError: `path` is not a tokenizer; the message says what was looked for. A file is not
            regular or is too large, or a link leads out of the folder. Two files disagree on an id.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        return _load_folder(local)
    if local.is_file():
        return _load_file(local)
    parts = local.parts
    looks_local = len(parts) != 1 and (len(parts) > 2 or Path(parts[0]).exists())
    if looks_local or local.suffix == ".json":
        raise UserError(
            f"{path}: there is no such tokenizer file or folder (looked from {Path.cwd()}); "
            "give a folder that holds tokenizer.json, or a Hugging Face name such as gpt2"
        )
    return _load_named(str(path), fetch)


def _load_named(name: str, fetch: bool) -> Tokenizer:
    """The tokenizer of a repository of the hub: its tokenizer.json, exactly as from a folder.

    AutoTokenizer is asked only where there is none. Versions 5 of transformers take no more than
    the vocabulary from tokenizer.json, and cut texts as the class that the config names does.
    """
    from huggingface_hub import snapshot_download

    where = "Hugging Face gave no" if fetch else "the cache of Hugging Face holds no"
    failure = (
        f"{name}: there is no such file or folder here (looked from {Path.cwd()}), and {where} "
        "tokenizer with this name"
    )
    with _asking(failure, fetch) as local:
        wanted = [*_MAIN_FILES, *companions.NAMES]
        folder = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=local))
    if any((folder / file).exists() for file in _MAIN_FILES):
        return _load_folder(folder)
    return _load_pretrained(name, failure, fetch)


def _load_folder(folder: Path) -> Tokenizer:
    for name in _MAIN_FILES:
        if (folder / name).exists():
            check_link(folder / name, folder)
            return _load_file(folder / name)
    if any((folder / name).exists() for name in _LEGACY_FILES):
        for parent, folders, files in os.walk(folder):  # transformers may read any of them
            for name in folders + files:
                check_link(Path(parent, name), folder)
            for name in files:
                given.check_regular(Path(parent, name), "the tokenizer's file")
        return _load_pretrained(
            str(folder), f"{folder}: transformers cannot load this tokenizer", fetch=False
        )
    raise UserError(
        f"{folder}: is not a tokenizer folder: it holds neither tokenizer.json nor {CHAR_FILE} "
        f"nor {', '.join(_LEGACY_FILES)}; give the folder that a tokenizer was saved in"
    )


def _load_file(path: Path) -> Tokenizer:
    import tokenizers

    try:
        text = given.read_bytes(path, given.LARGE, "the tokenizer file").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not a tokenizer file: {error}; give a tokenizer.json, or the folder that "
            "a tokenizer was saved in"
        ) from None
    data = given.parse_json(text, f"{path}: is not a tokenizer file")
    if isinstance(data, dict) and data.get("type") == "char":
        characters = data.get("characters")
        if not isinstance(characters, str) or len(set(characters)) != len(characters):
            raise UserError(f"{path}: `characters` must be a string of distinct characters")
        return CharTokenizer(characters)
    with given.foreign(
        lambda reason: (
            f"{path}: is not a tokenizer file ({reason}); give a tokenizer.json or a {CHAR_FILE}"
        )
    ):
        backend = tokenizers.Tokenizer.from_str(text)
    _check_ids(backend.get_vocab(with_added_tokens=True).values(), path)
    dropout = getattr(backend.model, "dropout", None)
    if dropout is not None:  # of BPE: 0 too turns off its cache of words
        backend.model.dropout = None
    if dropout:
        note(
            f"{path}: dropout={dropout:.6g} is turned off, since with it a text would have other "
            "ids each time"
        )
    said = companions.apply_companions(backend, path.parent)
    _check_ids(backend.get_vocab(with_added_tokens=True).values(), path)
    backend.encode_special_tokens = said.splits_special
    return SubwordTokenizer(backend, said.eos, said.bos, said.texts)


def _check_ids(ids: Iterable[int], source: object) -> None:
    """
    Raises:
        UserError: there are none, or shards cannot hold the largest.
    """
    largest = max(ids, default=None)
    if largest is None:
        raise UserError(
            f"{source}: its vocabulary is empty, as that of a tokenizer that was never trained; "
            "give one that has tokens"
        )
    if not 0 <= largest < LARGEST_ID:
        raise UserError(f"{source}: its largest id is {largest}; ids are below {LARGEST_ID}")


def _load_pretrained(name: str, failure: str, fetch: bool) -> Tokenizer:
    """A tokenizer without tokenizer.json, as transformers makes it from its other files."""
    from transformers import AutoTokenizer

    # trust_remote_code: left open, transformers asks on standard input whether to run the code
    with _asking(failure, fetch) as local:
        inner = AutoTokenizer.from_pretrained(name, local_files_only=local, trust_remote_code=False)
    if not inner.is_fast:
        _check_ids(inner.get_vocab().values(), name)
        return PythonTokenizer(inner)
    kind = f"{type(inner).__name__} of transformers {version('transformers')}"
    note(f"{name} has no tokenizer.json, so its ids are those of {kind}")
    with tempfile.TemporaryDirectory() as folder:  # its files define it completely
        inner.save_pretrained(folder)
        return _load_folder(Path(folder))


@contextlib.contextmanager
def _asking(failure: str, fetch: bool) -> Iterator[bool]:
    """Around a library that looks for a name or a folder: whether it may look here alone.

    Raises:
        UserError: it found nothing that it can read; begins with `failure`.
    """
    remedy = "Give a folder that holds tokenizer.json"
    if fetch:
        remedy = (
            "Check the spelling and the connection (a private or gated one also needs `hf auth "
            "login`), or give a folder that holds tokenizer.json"
        )

    def explain(reason: str) -> str:
        packages = [name for name in READERS.split() if name in reason]
        install = f"A tokenizer.model needs a package: pip install {READERS}\n" if packages else ""
        return f"{failure}: {reason}\n{install}{remedy}"

    local = not fetch or not reachable()  # the cache may have it
    with offline() if local else contextlib.nullcontext(), given.foreign(explain):
        yield local
