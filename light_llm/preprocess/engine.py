"""The two libraries that encode: `tokenizers`, whose ids are right by definition, and gigatoken,
which is many times faster and is asked only for texts whose ids are the same.

gigatoken gets the tokenizer without its added tokens. So a text that spells one out goes to
`tokenizers`, and so does one with a disputed character, and one that gigatoken fails on.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from light_llm.errors import UserError
from light_llm.files import given
from light_llm.preprocess.disputed import holds_disputed
from light_llm.preprocess.ids import Ids, of_rows, with_others
from light_llm.tokenizer import SubwordTokenizer

if TYPE_CHECKING:
    import numpy as np

FAST, REFERENCE = "gigatoken", "tokenizers"
PROVEN = {FAST: ("0.10",), REFERENCE: ("0.22", "0.23")}
"""The versions that were compared on every code point (`disputed`)."""
CACHE_BYTES = 256 * 2**20
"""What this process may grow by before gigatoken's cache of words is begun anew."""
LONGEST_OF_MANY = 2**20
"""Characters: gigatoken cuts a text in a batch where it thinks that it may, a single one never."""
BYTES_PER_CHARACTER = 16
"""What it grows by for each character of text at most, where the system does not say how much a
process holds. Words of five random letters took that much."""
_STATUS = Path("/proc/self/statm")


class Unfit(Exception):
    """Why gigatoken cannot stand for a tokenizer, as a clause: "it …"."""


class FastTokenizer:
    """Encodes as a `SubwordTokenizer` does, by gigatoken where that gives the same ids.

    gigatoken's cache of words is begun anew when the process has grown by `CACHE_BYTES`.

    Raises:
        Unfit: gigatoken is not there, is not of a proven version, or cannot read this tokenizer.
    """

    def __init__(self, tokenizer: SubwordTokenizer):
        self.reference = tokenizer
        self.bos_id, self.eos_id = tokenizer.bos_id, tokenizer.eos_id
        self.renewals = 0
        """How often the cache was begun anew."""
        self._spelled = _spelled(tokenizer)
        self._heads = {token[:2] for token in self._spelled}
        self._json = _without_added(tokenizer)
        self._before, self._behind = _template(tokenizer)
        self._engine: Any = None
        self._grown = 0
        self._at_first: int | None = None
        self._renew()

    def encode_all(self, texts: Sequence[str], add_special_tokens: bool = False) -> Ids:
        """The ids of each text, as of `SubwordTokenizer.encode_batch`, on all cores."""
        if self._engine is None:
            self._renew()
        many = [len(text) <= LONGEST_OF_MANY and self.takes(text) for text in texts]
        try:
            with given.foreign(str):
                found = self._together([*itertools.compress(texts, many)])
        except UserError:  # it fails on one of them
            many, found = [False] * len(texts), of_rows(())
        if add_special_tokens:
            found = of_rows(self._in_template(row, True) for row in found.rows())
        others = [number for number, one_of_many in enumerate(many) if not one_of_many]
        rows = [self._encode(texts[number], add_special_tokens) for number in others]
        found = with_others(found, others, rows)
        self._count(sum(map(len, texts)))
        return found

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        if self._engine is None:
            self._renew()
        return self._encode(text, add_special_tokens).tolist()

    def _together(self, texts: list[str]) -> Ids:
        import numpy as np

        if not texts:
            return of_rows(())
        lists = self._engine.encode_batch(texts).layout.to_ListOffsetArray64(True)
        offsets = np.asarray(lists.offsets.data, np.int64)
        values = np.asarray(lists.content.data)[: offsets[-1]]
        return Ids(values.view(np.int32), np.diff(offsets))

    def _encode(self, text: str, special: bool) -> np.ndarray:
        import numpy as np

        if not self.takes(text):
            return np.array(self.reference.encode(text, special), np.int32)
        try:
            with given.foreign(str):
                ids = self._engine.encode(text).view(np.int32)
        except UserError:
            return np.array(self.reference.encode(text, special), np.int32)
        return self._in_template(ids, special)

    def _in_template(self, ids: np.ndarray, special: bool) -> np.ndarray:
        import numpy as np

        return np.concatenate([self._before, ids, self._behind]) if special else ids

    def takes(self, text: str) -> bool:
        """Whether gigatoken gets this text."""
        return bool(text) and not self._spells_added(text) and not holds_disputed(text)

    def _spells_added(self, text: str) -> bool:
        if not any(head in text for head in self._heads):
            return False
        return any(token in text for token in self._spelled)

    def _count(self, characters: int) -> None:
        """Begin the cache anew if it may have grown too large."""
        held = _resident()
        if self._at_first is None or held is None:
            self._grown += BYTES_PER_CHARACTER * characters
        else:
            self._grown = held - self._at_first
        if self._grown > CACHE_BYTES:
            self.renewals += 1
            self._renew()

    def release(self) -> None:
        """Give the memory back until the next text."""
        self._engine = None

    def _renew(self) -> None:
        self.release()  # the old one's memory first
        self._engine = _load(self._json)
        self._grown, self._at_first = 0, _resident()


def engine_of(encoder: object) -> str | None:
    """The library that encodes, with its version; None if it is none of the two."""
    if not isinstance(encoder, FastTokenizer | SubwordTokenizer):
        return None
    name = FAST if isinstance(encoder, FastTokenizer) else REFERENCE
    return f"{name} {version(name)}"


def check_version() -> None:
    """
    Raises:
        Unfit: gigatoken is not installed, or the two were not compared in these versions.
    """
    try:
        found = {name: version(name) for name in PROVEN}
    except PackageNotFoundError:
        raise Unfit("it is not installed (`pip install gigatoken`)") from None
    for name, known in PROVEN.items():
        if ".".join(found[name].split(".")[:2]) not in known:
            raise Unfit(
                f"{name} {found[name]} was not compared with the other; {name} "
                f"{' and '.join(known)} were"
            )


def _load(text: str) -> Any:
    try:
        from gigatoken.gigatoken_rs import load_hf_json

        with given.foreign(str):
            return load_hf_json(text)
    except ImportError as error:
        raise Unfit(f"it cannot be imported ({error})") from None
    except UserError as error:
        reason = str(error).partition(" Location:")[0]
        raise Unfit(f"it cannot read this tokenizer: {reason}") from None


def _resident() -> int | None:
    """Bytes of this process that are in memory; None where the system does not say."""
    try:
        return int(_STATUS.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def _without_added(tokenizer: SubwordTokenizer) -> str:
    content = json.loads(tokenizer.backend.to_str())
    return json.dumps(content | {"added_tokens": [], "post_processor": None})


def _spelled(tokenizer: SubwordTokenizer) -> list[str]:
    """The texts that `tokenizers` looks for before it splits a text into words.

    Raises:
        Unfit: it looks for one in what the normalizer made of the text.
    """
    backend = tokenizer.backend
    tokens = list(_matched(backend))
    late = next((token.content for token in tokens if token.normalized), None)
    if late is not None and backend.normalizer is not None:
        raise Unfit(f"the added token {late!r} is looked for in the normalized text")
    return sorted(token.content for token in tokens if token.content)


def _matched(backend: Any) -> Iterator[Any]:
    for token in backend.get_added_tokens_decoder().values():
        if not (token.special and backend.encode_special_tokens):
            yield token


def _template(tokenizer: SubwordTokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The ids that the tokenizer's template puts before a text and behind it.

    Raises:
        Unfit: it is no such template.
    """
    import numpy as np

    try:
        plain, whole = tokenizer.encode("a"), tokenizer.encode("a", True)
    except UserError as error:
        raise Unfit(f"a text of one letter cannot be encoded: {error}") from None
    for start in range(len(whole) - len(plain) + 1):
        if plain and whole[start : start + len(plain)] == plain:
            before, behind = whole[:start], whole[start + len(plain) :]
            return np.array(before, np.int32), np.array(behind, np.int32)
    raise Unfit("its template does more than to put tokens before and behind a text")
