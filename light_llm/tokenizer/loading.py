"""Loading a tokenizer: what was saved here, a Hugging Face folder or file, or a name of the hub."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from light_llm.errors import UserError
from light_llm.files import given
from light_llm.tokenizer.hub import offline, reachable
from light_llm.tokenizer.kinds import (
    CHAR_FILE,
    END_OF_TEXT,
    CharTokenizer,
    PythonTokenizer,
    SubwordTokenizer,
    Tokenizer,
    config_text,
)
from light_llm.tokenizer.notes import note

if TYPE_CHECKING:
    import tokenizers

_MAIN_FILES = ("tokenizer.json", CHAR_FILE)
# Files that transformers keeps beside tokenizer.json; copied unchanged, with chat templates.
_COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
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
# End and begin marks, tried in this order where no tokenizer_config.json names them.
_USUAL = (
    (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "[EOS]"),
    ("<s>", "<|begin_of_text|>", "<bos>", "[BOS]"),
)


def load_tokenizer(path: str | Path, *, fetch: bool = True) -> Tokenizer:
    """Load what `save` wrote, any Hugging Face tokenizer folder or file, or a hub name.

    A folder's `tokenizer.json` is taken as it is; its first and last tokens are those that
    `tokenizer_config.json` names or, without one, special tokens with a usual name (`</s>`, …).
    No code from the folder or the hub is ever run.

    Args:
        fetch: whether a hub name may be downloaded; else only the hub's cache is searched. Pass
            True only for a name that the user gave, never for one from somebody else's file.

    Raises:
        UserError: `path` is not a tokenizer; the message says what was looked for. A file is not
            regular or is too large, or a link leads out of the folder.
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
        wanted = [*_MAIN_FILES, *_COMPANIONS]
        folder = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=local))
    if any((folder / file).exists() for file in _MAIN_FILES):
        return _load_folder(folder)
    return _load_pretrained(name, failure, fetch)


def _load_folder(folder: Path) -> Tokenizer:
    for name in _MAIN_FILES:
        if (folder / name).exists():
            _check_link(folder / name, folder)
            return _load_file(folder / name)
    if any((folder / name).exists() for name in _LEGACY_FILES):
        for parent, folders, files in os.walk(folder):  # transformers may read any of them
            for name in folders + files:
                _check_link(Path(parent, name), folder)
            for name in files:
                given.check_regular(Path(parent, name), "the tokenizer's file")
        return _load_pretrained(
            str(folder), f"{folder}: transformers cannot load this tokenizer", fetch=False
        )
    raise UserError(
        f"{folder}: is not a tokenizer folder: it holds neither tokenizer.json nor {CHAR_FILE} "
        f"nor {', '.join(_LEGACY_FILES)}; give the folder that a tokenizer was saved in"
    )


def _check_link(path: Path, folder: Path) -> None:
    """Refuse a link that leads out of a tokenizer's folder: its content would be copied and shared.

    The hub's own cache is made of links, so those into it may stay.
    """
    target = given.leads_out(path, folder) if path.is_symlink() else None
    if target is None:
        return
    from huggingface_hub.constants import HF_HUB_CACHE

    in_cache = target.is_relative_to(Path(HF_HUB_CACHE).resolve())
    if not in_cache and target.parent != _blobs(folder.resolve()):
        raise UserError(
            f"{path}: is a link to {target}, outside the tokenizer's folder; put the file itself "
            "there, or remove the link"
        )


def _blobs(folder: Path) -> Path | None:
    """Where the files of a snapshot lie in a cache of the hub, wherever that cache is.

    The layout is models--NAME/snapshots/COMMIT/FILE, a link to models--NAME/blobs/DIGEST.
    """
    model = folder.parent.parent
    is_snapshot = folder.parent.name == "snapshots" and model.name.startswith("models--")
    return model / "blobs" if is_snapshot else None


def _load_file(path: Path) -> Tokenizer:
    import tokenizers

    try:
        text = given.read_bytes(path, given.LARGE, "the tokenizer file").decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a tokenizer file: {error}") from None
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
    largest = max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
    if not 0 <= largest < LARGEST_ID:
        raise UserError(
            f"{path}: its largest id is {largest}; a tokenizer has at least one, and ids are below "
            f"{LARGEST_ID}"
        )
    return _with_companions(backend, path.parent)


def _with_companions(backend: tokenizers.Tokenizer, folder: Path) -> SubwordTokenizer:
    companions = {}
    for name in _COMPANIONS:
        if (folder / name).is_symlink() or (folder / name).exists():
            _check_link(folder / name, folder)
            companions[name] = given.read_text(folder / name, what="the tokenizer's file")
    if "tokenizer_config.json" not in companions:
        special = [token.content for token in backend.get_added_tokens_decoder().values()]
        eos, bos = (next((t for t in usual if t in special), None) for usual in _USUAL)
        companions["tokenizer_config.json"] = config_text(eos_token=eos, bos_token=bos)
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        content = given.parse_json(
            companions.get(name, "{}"), f"{folder / name}: is not a JSON object"
        )
        if not isinstance(content, dict):
            raise UserError(f"{folder / name}: is not a JSON object; it must map names to values")
        config |= content
    backend.encode_special_tokens = bool(config.get("split_special_tokens"))
    eos, bos = (_content(config.get(key), key, folder) for key in ("eos_token", "bos_token"))
    return SubwordTokenizer(backend, eos, bos, companions)


def _content(token: Any, key: str, folder: Path) -> str | None:
    """A special token as configs spell it: "</s>", or {"content": "</s>", …}, or null."""
    content = token.get("content") if isinstance(token, dict) else token
    if content is not None and not isinstance(content, str):
        raise UserError(
            f"{folder / 'tokenizer_config.json'}: {key} is {token!r}; it must be a token's text, "
            "not its id, or null"
        )
    return content


def _load_pretrained(name: str, failure: str, fetch: bool) -> Tokenizer:
    """A tokenizer without tokenizer.json, as transformers makes it from its other files."""
    from transformers import AutoTokenizer

    # trust_remote_code: left open, transformers asks on standard input whether to run the code
    with _asking(failure, fetch) as local:
        inner = AutoTokenizer.from_pretrained(name, local_files_only=local, trust_remote_code=False)
    if not inner.is_fast:
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
    local = not fetch or not reachable()  # the cache may have it
    with (
        offline() if local else contextlib.nullcontext(),
        given.foreign(lambda reason: f"{failure}: {reason}\n{remedy}"),
    ):
        yield local
