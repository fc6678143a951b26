"""The numbers of what a run wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from light_llm.preprocess.corpus import Corpus, FileCorpus
from light_llm.preprocess.entropy import unigram_entropy
from light_llm.preprocess.inputs import Input, of_inputs
from light_llm.preprocess.journal import under
from light_llm.preprocess.manifest import TOKENIZER
from light_llm.preprocess.shards import Shard


@dataclasses.dataclass(frozen=True)
class Side:
    """The numbers of one corpus's train or val."""

    documents: int
    characters: int
    tokens: int
    files: int


@dataclasses.dataclass(frozen=True)
class Summary:
    parts: dict[str, tuple[Side, Side]]
    """Train and val of each corpus, by its subfolder; "" if there is only one corpus."""
    vocab_size: int
    unigram_entropy: float
    """Nats per token, of val, or of train if there is no val."""
    tokenizer: Path
    inputs: tuple[Input, ...] = ()
    """What came from each input, if there are several."""
    duplicates: int | None = None
    """Documents whose text an earlier one has. None: the version that wrote them did not count."""

    @property
    def train(self) -> Side:
        return _sum(train for train, _ in self.parts.values())

    @property
    def val(self) -> Side:
        return _sum(val for _, val in self.parts.values())


def summarize(
    output: Path,
    names: Sequence[str],
    shards: Sequence[Shard],
    vocab_size: int,
    folder: Path,
    duplicates: int | None,
    corpora: Sequence[Corpus],
) -> Summary:
    """The summary of `shards`, which are below `folder` and will be, or are, in `output`.

    Args:
        names: the corpora's subfolders; "" for the output itself.
        duplicates: documents whose text an earlier one has.
        corpora: what they were made of.
    """
    parts = {}
    files: dict[str, list[Path]] = {"train": [], "val": []}
    for name in names:
        train, val = (under(f"{name}/{side}".lstrip("/"), shards) for side in ("train", "val"))
        parts[name] = (_side(train), _side(val))
        files["train"] += [folder / shard.file for shard in train]
        files["val"] += [folder / shard.file for shard in val]
    entropy = unigram_entropy(files["val"] or files["train"])
    paths = [folder / shard.file for shard in shards]
    inputs = [
        each
        for corpus in corpora
        if isinstance(corpus, FileCorpus) and len(corpus.inputs) > 1
        for each in of_inputs(corpus.inputs, corpus.files, paths)
    ]
    return Summary(parts, vocab_size, entropy, output / TOKENIZER, tuple(inputs), duplicates)


def _side(shards: list[Shard]) -> Side:
    return Side(
        sum(shard.documents for shard in shards),
        sum(shard.characters for shard in shards),
        sum(shard.tokens for shard in shards),
        len(shards),
    )


def _sum(sides: Iterable[Side]) -> Side:
    return Side(*map(sum, zip(*map(dataclasses.astuple, sides), strict=True)))
