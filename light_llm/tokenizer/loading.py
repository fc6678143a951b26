"""Loading a tokenizer: what was saved here, a Hugging Face folder or file, or a name of the hub."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from light_llm.errors import UserError
from light_llm.tokenizer.hub import reachable
from light_llm.tokenizer.kinds import (
    CHAR_FILE,
    END_OF_TEXT,
    CharTokenizer,
    PythonTokenizer,
    SubwordTokenizer,
    Tokenizer,
    config_text,
)

if TYPE_CHECKING:
    import tokenizers

# What transformers keeps beside tokenizer.json; copied as they are, chat templates included.
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
# End and begin marks, tried in this order where no tokenizer_config.json names them.
_USUAL = (
    (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "[EOS]"),
    ("<s>", "<|begin_of_text|>", "<bos>", "[BOS]"),
)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load what `save` wrote, any Hugging Face tokenizer folder or file, or a hub name.

    A folder's `tokenizer.json` is taken as it is; its first and last tokens are those that
    `tokenizer_config.json` names or, without one, special tokens with a usual name (`</s>`, …).

    Raises:
        UserError: `path` is neither; says what was looked for.
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
    return _load_pretrained(
        str(path),
        f"{path}: is no file or folder here (looked from {Path.cwd()}), and Hugging Face gave no "
        "tokenizer of this name",
    )


def _load_folder(folder: Path) -> Tokenizer:
    for name in ("tokenizer.json", CHAR_FILE):
        if (folder / name).is_file():
            return _load_file(folder / name)
    if any((folder / name).is_file() for name in _LEGACY_FILES):
        return _load_pretrained(str(folder), f"{folder}: transformers cannot load this tokenizer")
    raise UserError(
        f"{folder}: is not a tokenizer folder: it holds neither tokenizer.json nor {CHAR_FILE} "
        f"nor {', '.join(_LEGACY_FILES)}; give the folder that a tokenizer was saved in"
    )


def _load_file(path: Path) -> Tokenizer:
    import tokenizers

    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not a tokenizer file: {error}") from None
    if isinstance(data, dict) and data.get("type") == "char":
        characters = data.get("characters")
        if not isinstance(characters, str) or len(set(characters)) != len(characters):
            raise UserError(f"{path}: `characters` must be a string of distinct characters")
        return CharTokenizer(characters)
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the Rust side raises nothing narrower
        raise UserError(
            f"{path}: is not a tokenizer file ({error}); give a tokenizer.json or a {CHAR_FILE}"
        ) from None
    return _with_companions(backend, path.parent)


def _with_companions(backend: tokenizers.Tokenizer, folder: Path) -> SubwordTokenizer:
    companions = {}
    for name in _COMPANIONS:
        with contextlib.suppress(FileNotFoundError):
            companions[name] = (folder / name).read_text(encoding="utf-8")
    if "tokenizer_config.json" not in companions:
        special = [token.content for token in backend.get_added_tokens_decoder().values()]
        eos, bos = (next((t for t in usual if t in special), None) for usual in _USUAL)
        companions["tokenizer_config.json"] = config_text(eos_token=eos, bos_token=bos)
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            config |= json.loads(companions.get(name, "{}"))
        except (ValueError, TypeError) as error:
            raise UserError(f"{folder / name}: is not a JSON object: {error}") from None
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


def _load_pretrained(name: str, failure: str) -> Tokenizer:
    from transformers import AutoTokenizer

    local = Path(name).is_dir() or not reachable()  # the cache may have it
    try:
        inner = AutoTokenizer.from_pretrained(name, local_files_only=local)
    except Exception as error:  # whatever the hub, the network or a tokenizer's own code raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{failure}: {reason}\nCheck the spelling and the connection (a private or gated one "
            "also needs `hf auth login`), or give a folder that holds tokenizer.json"
        ) from None
    if not inner.is_fast:
        return PythonTokenizer(inner)
    with tempfile.TemporaryDirectory() as folder:  # its files are its whole definition
        inner.save_pretrained(folder)
        return _load_folder(Path(folder))
