"""Hugging Face datasets, streamed: by name from the hub, or from a folder laid out like one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from light_llm.errors import UserError, one_line
from light_llm.files import given
from light_llm.preprocess.config import DEFAULT_HF_SPLIT, PreprocessConfig
from light_llm.preprocess.corpus import believable
from light_llm.preprocess.files import links_out
from light_llm.preprocess.notices import notice_links
from light_llm.preprocess.opening import Reading
from light_llm.preprocess.rows import RowText
from light_llm.preprocess.skipped import Skipped, check_number
from light_llm.preprocess.sources import Document
from light_llm.tokenizer.hub import offline, reachable

if TYPE_CHECKING:
    import datasets

INSTALL = "pip install datasets zstandard"
DIFFERENT_FILES = (
    "\nA column has not the same type in all files. Read the files themselves with --input (those "
    "of the hub after `hf download`), which needs the text column alone"
)


@dataclass
class HubCorpus:
    """The rows of one configuration of a dataset, in order."""

    stream: datasets.IterableDataset
    label: str
    """dataset/configuration/split, as it is written before the row's number in `source`."""
    rows: RowText
    files: dict[str, Any]
    name: str = ""
    min_length: int = 0
    skipped: Skipped = field(default_factory=Skipped, init=False)
    reading: Reading | None = field(default=None, init=False)
    _row: int = field(default=0, init=False)

    def documents(self, place: Any = None) -> Iterator[Document]:
        with believable():
            self.skipped = Skipped() if place is None else Skipped.parse(place["skipped"])
            self._row = 0 if place is None else check_number(place["row"])
        with given.foreign(lambda reason: f"{self.label}: cannot be continued: {reason}"):
            self.stream.load_state_dict(self._first if place is None else place["stream"])
        return self._from_here()

    def __post_init__(self) -> None:
        self._first = self.stream.state_dict()

    def _from_here(self) -> Iterator[Document]:
        try:
            for row in self.stream:
                where = f"{self.label}:{self._row}"
                self._row += 1
                text = self.rows.text(row, where)
                if self.skipped.takes(text, self.min_length):
                    yield Document(where, text)
        except UserError:
            raise
        except Exception as error:  # any error of the network, the loader or a file's format
            mend = DIFFERENT_FILES if "couldn't cast" in str(error).lower() else ""
            raise UserError(
                f"{self.label}: cannot be read beyond row {self._row}: {_reason(error)}{mend}"
            ) from error

    def here(self) -> Any:
        return {
            "row": self._row,
            "stream": self.stream.state_dict(),
            "skipped": {"empty": self.skipped.empty, "short": self.skipped.short},
        }

    def sample(self, characters: int) -> Iterator[Document]:
        """From the start: a stream's length is not known."""
        taken = 0
        for document in self.documents():
            yield document
            taken += len(document.text)
            if taken >= characters:
                return

    def reordered(self, draw: random.Random) -> HubCorpus:
        stream = self.stream.shuffle(seed=draw.randrange(2**32), buffer_size=1)  # files, not rows
        return HubCorpus(stream, self.label, self.rows, self.files, self.name, self.min_length)

    def identity(self) -> dict[str, Any]:
        return self.files

    def describe(self) -> str:
        return f"{self.label}: of {self._row} rows"


def open_hub(config: PreprocessConfig, rows: RowText) -> list[HubCorpus]:
    """The corpora that `config` names: one, or one per name in hf_configs.

    Raises:
        UserError: `datasets` is not installed, or there is no such dataset, configuration, split or
            column.
    """
    dataset = config.hf_dataset
    assert dataset is not None
    try:
        import datasets
    except ImportError:
        raise UserError(f"hf_dataset={dataset!r} needs the package datasets: {INSTALL}") from None
    if config.hf_revision is not None and Path(dataset).exists():
        raise UserError(
            f"hf_revision={config.hf_revision!r} has no meaning for hf_dataset={dataset!r}, which "
            "is a folder here; leave it out"
        )
    if not Path(dataset).exists() and not reachable():
        raise UserError(
            f"hf_dataset={dataset!r}: there is no such folder here (looked from {Path.cwd()}), "
            "and Hugging Face cannot be reached; check the path or the connection, or read files "
            "with --input"
        )
    if Path(dataset).is_dir():
        notice_links(links_out(Path(dataset)))
    datasets.utils.logging.set_verbosity(logging.CRITICAL)  # it raises what it logs
    datasets.disable_progress_bars()
    names = config.hf_configs or (config.hf_config,)
    return [_open_one(config, dataset, name, rows) for name in names]


def _open_one(config: PreprocessConfig, dataset: str, name: str | None, rows: RowText) -> HubCorpus:
    import datasets

    split = DEFAULT_HF_SPLIT if config.hf_split is None else config.hf_split
    folder = Path(dataset) if Path(dataset).is_dir() else None
    try:
        with contextlib.nullcontext() if folder is None else offline():
            if folder is not None:
                check_card(folder)
            builder = datasets.load_dataset_builder(dataset, name, revision=config.hf_revision)
            files = [
                str(at) for found in (builder.config.data_files or {}).values() for at in found
            ]
            check_files(dataset, folder, files)
            stream = builder.as_streaming_dataset(split=split)
    except UserError:
        raise
    except Exception as error:  # no such name, configuration or split; the loader or the network
        chosen = "" if name is None else f" with the configuration {name!r}"
        raise UserError(
            f"hf_dataset={dataset!r}: its split {split!r} cannot be opened{chosen}: "
            f"{_reason(error)}\nCheck --hf-config and --hf-split. A private or gated one needs "
            "`hf auth login`; one that is a script has its files in --hf-revision "
            "refs/convert/parquet"
        ) from error
    label = "/".join(filter(None, (dataset.rstrip("/"), name, split)))
    if stream.column_names is not None:
        column = rows.field(stream.column_names, label)
        if column is not None:
            stream = stream.select_columns([column])
    subset = name if config.hf_configs else ""
    return HubCorpus(
        stream, label, rows, _identity(builder, split), subset or "", config.min_length
    )


def check_card(folder: Path) -> None:
    """Refuse a dataset card that names files elsewhere, before they are looked for.

    Raises:
        UserError: it names such files, or cannot be read.
    """
    for path in (folder / "README.md", folder / ".huggingface.yaml"):
        if not os.path.lexists(path):
            continue
        configs = _read_card(path).get("configs") or []
        named = [config.get(key) for config in configs for key in ("data_files", "data_dir")]
        for place in _strings(named):
            last = place.rpartition("::")[2]  # zip://member::archive
            if "://" in last or os.path.isabs(last) or ".." in Path(last).parts:
                raise UserError(
                    f"{path}: names files outside its folder ({place}), which may be private; "
                    "put them into the folder, or give them with --input"
                )


def _read_card(path: Path) -> dict[str, Any]:
    import yaml
    from huggingface_hub import metadata_load

    given.check_regular(path, "the dataset card")
    with given.foreign(lambda reason: f"{path}: is not a dataset card: {reason}"):
        if path.suffix == ".md":
            return dict(metadata_load(path) or {})
        return dict(yaml.safe_load(path.read_text("utf-8")) or {})


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def check_files(dataset: str, folder: Path | None, files: Iterable[str]) -> None:
    """Refuse files outside the dataset: its card may name the user's, or another server's.

    Args:
        folder: the dataset's, if it is a folder here, else None.
        files: those that `datasets` found by the card.

    Raises:
        UserError: there is such a file.
    """
    for file in files:
        last = file.rpartition("::")[2]
        if folder is None:
            inside = last.startswith("hf://")
        else:
            inside = Path(os.path.normpath(last)).is_relative_to(folder.resolve())
        if not inside:
            raise UserError(
                f"hf_dataset={dataset!r}: names a file that is not part of it ({file}); "
                "give such a file with --input, if you trust it"
            )


def _identity(builder: datasets.DatasetBuilder, split: str) -> dict[str, Any]:
    """The files behind a stream, with the hub's revision in their names, and when they changed."""
    found = (builder.config.data_files or {}).get(split)
    files = [] if found is None else [*map(str, found), *map(str, found.origin_metadata)]
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return {"builder": builder.hash, "files": len(found or ()), "digest": digest}


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
