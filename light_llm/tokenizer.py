"""Tokenizers: byte-level BPE, characters, or anything of Hugging Face's, behind one interface.

Text is text: `encode` adds no special tokens unless asked, and in the tokenizers that are trained
here a document that spells out `<|endoftext|>` gets the tokens of those letters, not an end.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from light_llm.errors import UserError

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"
MIN_BPE_VOCAB = 257  # the 256 bytes and END_OF_TEXT
CHAR_FILE = "char_tokenizer.json"
UNKNOWN_CHAR = "\N{REPLACEMENT CHARACTER}"

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


class Tokenizer(Protocol):
    """Text <-> ids. Ids are 0 .. vocab_size - 1; an id that stands for nothing decodes to ""."""

    @property
    def vocab_size(self) -> int:
        """The largest id plus one, added tokens included: the least `model.vocab_size`."""

    @property
    def eos_id(self) -> int | None:
        """The id that ends a document, or None."""

    @property
    def bos_id(self) -> int | None:
        """The id that begins a document, or None."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]: ...

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = False
    ) -> list[list[int]]:
        """`encode` of each text; in parallel where the tokenizer can."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...

    def save(self, folder: str | Path) -> None:
        """Write a folder that `load_tokenizer` reads (and, unless char, `AutoTokenizer` too)."""


class SubwordTokenizer:
    """A `tokenizers.Tokenizer` (BPE, unigram, WordPiece) that knows its first and last token."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        eos_token: str | None,
        bos_token: str | None = None,
        companions: dict[str, str] | None = None,
    ):
        """`companions`: names and texts of the files that `save` puts beside tokenizer.json."""
        backend.no_truncation()  # some saved files cut or pad every text; a shard must not
        backend.no_padding()
        self.backend = backend
        self.eos_id: int | None = backend.token_to_id(eos_token) if eos_token else None
        self.bos_id: int | None = backend.token_to_id(bos_token) if bos_token else None
        self.vocab_size: int = 1 + max(backend.get_vocab(with_added_tokens=True).values())
        self._companions = companions or {}

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = False
    ) -> list[list[int]]:
        encodings = self.backend.encode_batch_fast(
            list(texts), add_special_tokens=add_special_tokens
        )
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))
        for name, text in self._companions.items():
            (folder / name).write_text(text, encoding="utf-8")


class CharTokenizer:
    """One id per character. Id 0 is any unknown one and decodes to U+FFFD, id 1 ends a document."""

    bos_id: int | None = None
    eos_id: int | None = 1

    def __init__(self, characters: str):
        """`characters`: those with an id of their own, from 2 on, in this order."""
        self.characters = characters
        self.vocab_size: int = 2 + len(characters)
        self._pieces = [UNKNOWN_CHAR, END_OF_TEXT, *characters]
        self._ids = {character: id for id, character in enumerate(characters, start=2)}

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """There is nothing to add, whatever `add_special_tokens` says."""
        return [self._ids.get(character, 0) for character in text]

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = False
    ) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        shown = (id for id in ids if 0 <= id < self.vocab_size)
        return "".join(self._pieces[id] for id in shown if id != 1 or not skip_special_tokens)

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"type": "char", "characters": self.characters}, indent=2)
        (folder / CHAR_FILE).write_text(text + "\n", encoding="utf-8")


class PythonTokenizer:
    """A tokenizer of transformers that has no `tokenizers` backend, such as ByT5's."""

    def __init__(self, inner: PreTrainedTokenizerBase):
        self._inner = inner
        self.eos_id: int | None = inner.eos_token_id
        self.bos_id: int | None = inner.bos_token_id
        self.vocab_size: int = 1 + max(inner.get_vocab().values())

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return self._inner.encode(text, add_special_tokens=add_special_tokens, verbose=False)

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = False
    ) -> list[list[int]]:
        return [self.encode(text, add_special_tokens) for text in texts]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        text = self._inner.decode(
            [id for id in ids if 0 <= id < self.vocab_size],
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        assert isinstance(text, str)  # a list only for a list of lists
        return text

    def save(self, folder: str | Path) -> None:
        self._inner.save_pretrained(str(folder))


class StreamDecoder:
    """Decodes ids as they come, never a part of a character.

    The pieces of all `add` calls and the `flush` joined are what `decode` gives for all the ids.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True):
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        # Decoders look at what precedes (SentencePiece drops a leading space), so the ids of the
        # last piece stay as context for the next.
        self._context: list[int] = []
        self._pending: list[int] = []

    def add(self, id: int) -> str:
        """The text that is certain now that `id` has come; "" in the middle of a character."""
        self._pending.append(id)
        piece = self._piece()
        # Bytes that do not make a character yet decode to U+FFFD.
        if not piece or piece.endswith(UNKNOWN_CHAR):
            return ""
        self._context, self._pending = self._pending, []
        return piece

    def flush(self) -> str:
        """What is left; a character that was cut off comes as U+FFFD. The decoder starts afresh."""
        piece = self._piece()
        self._context, self._pending = [], []
        return piece

    def _piece(self) -> str:
        before = self._tokenizer.decode(self._context, self._skip)
        return self._tokenizer.decode(self._context + self._pending, self._skip)[len(before) :]


def train_bpe(texts: Iterable[str], vocab_size: int, min_frequency: int = 2) -> SubwordTokenizer:
    """Train a byte-level BPE as GPT-2's: every text survives encode and decode exactly.

    `<|endoftext|>` is id 0, the 256 bytes follow, then the merges of pairs that occur at least
    `min_frequency` times; a small text may give fewer than `vocab_size` ids. Texts are read once
    and not kept. Equal texts give an equal tokenizer.

    Raises:
        UserError: vocab_size is below 257.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab_size < MIN_BPE_VOCAB:
        raise UserError(
            f"vocab_size={vocab_size} is too small for BPE: the 256 bytes and {END_OF_TEXT} "
            f"need {MIN_BPE_VOCAB}; use {MIN_BPE_VOCAB} or more"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.encode_special_tokens = True
    # split_special_tokens is what transformers calls encode_special_tokens.
    config = _config_text(eos_token=END_OF_TEXT, split_special_tokens=True)
    return SubwordTokenizer(backend, END_OF_TEXT, companions={"tokenizer_config.json": config})


def train_char(texts: Iterable[str]) -> CharTokenizer:
    """Give every character of `texts` an id, in the order of their code points."""
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    return CharTokenizer("".join(sorted(characters)))


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
        companions["tokenizer_config.json"] = _config_text(eos_token=eos, bos_token=bos)
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            config |= json.loads(companions.get(name, "{}"))
        except (ValueError, TypeError) as error:
            raise UserError(f"{folder / name}: is not a JSON object: {error}") from None
    backend.encode_special_tokens = bool(config.get("split_special_tokens"))
    eos, bos = (_content(config.get(key)) for key in ("eos_token", "bos_token"))
    return SubwordTokenizer(backend, eos, bos, companions)


def _config_text(**values: Any) -> str:
    """A tokenizer_config.json that lets transformers take tokenizer.json as it is."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return json.dumps(config | values, indent=2) + "\n"


def _content(token: Any) -> str | None:
    """A special token as configs spell it: "</s>", or {"content": "</s>", …}, or null."""
    return token.get("content") if isinstance(token, dict) else token


def _load_pretrained(name: str, failure: str) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        inner = AutoTokenizer.from_pretrained(name)
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
