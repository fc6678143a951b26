"""What one run of llm-preprocess is asked to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator, model_validator

from light_llm.configfile import Config

# Defaults of fields that are None unless given, since they are refused where they mean nothing.
DEFAULT_HF_SPLIT = "train"
DEFAULT_VOCAB_SIZE = 8192
MOST_IDS = 2**24  # BPE's trainer allocates for all of them
MOST_WORKERS = 1024
MOST_PARTS = 10_000
DEFAULT_MIN_FREQUENCY = 2
DEFAULT_TRAIN_CHARACTERS = 200_000_000

_FILES_ONLY = ("include", "exclude", "allow_skipped")
_HUB_ONLY = ("hf_config", "hf_configs", "hf_split", "hf_revision")
_STEPS = ("prepare", "part", "finish", "cluster")
"""What is done of a run in parts; without one, all."""
_RESERVED = ("train", "val", "tokenizer")


class PreprocessConfig(Config):
    """Text in, shards out. The flags of llm-preprocess are these fields, with dashes."""

    path_keys = (
        "input",
        "hf_dataset",
        "output",
        "adapter_module",
        "tokenizer_path",
        "save_tokenizer",
    )
    hub_keys = ("hf_dataset", "tokenizer_path")

    input: tuple[str, ...] = ()
    hf_dataset: str | None = None
    """A Hugging Face dataset instead of `input`: its name on the hub, or a folder like one."""
    hf_config: str | None = None
    hf_configs: tuple[str, ...] = ()
    """Several of its configurations, each into a subfolder of `output` with its name."""
    hf_split: str | None = None
    hf_revision: str | None = None
    output: Path
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    allow_skipped: bool = False
    """Go on where most bytes of the input are in files that are not text."""
    text_column: str | None = None
    """None: the known column of the dataset, else the first of text, content and body."""
    adapter_module: str | None = None
    dedupe: Literal["exact"] | None = None
    """Drop documents whose text an earlier one has. The input is read once more for it."""
    min_length: int = 1
    """Documents with fewer characters are skipped. So are documents of white space, always."""

    tokenizer: Literal["bpe", "char", "hf"] | None = None
    """The kind to train, or with tokenizer_path the kind to expect. None: bpe, or any."""
    tokenizer_path: str | None = None
    vocab_size: int | None = None
    min_frequency: int | None = None
    train_characters: int | None = None
    """Most characters to train BPE on; its memory grows with them."""
    save_tokenizer: Path | None = None
    """A folder for a second copy of the tokenizer, besides the one in `output`."""
    add_special_tokens: bool = False
    """Let the tokenizer's own template add its tokens to each document."""

    val_fraction: float = 0.01
    shuffle_seed: int | None = None
    """Shuffle the documents with this seed. None: the order of the sorted input."""
    shard_size: int = 50_000_000
    """Tokens; only a longer document makes a longer shard."""
    workers: int | None = None
    """Number of processes that tokenize, where the library tokenizers does. None: one per core. The
    shards do not depend on it."""
    engine: Literal["auto", "tokenizers"] = "auto"
    """The library that encodes: gigatoken where its ids are the same, or always tokenizers. The
    shards do not depend on it."""
    overwrite: bool = False

    parts: int | None = None
    """Into how many parts the input is cut, by its files alone. Each makes its own shards."""
    prepare: bool = False
    """Make the tokenizer and the plan that all parts need."""
    part: int | None = None
    """Make this one, from 0."""
    finish: bool = False
    """Check the parts, and publish their shards together."""
    cluster: str | None = None
    """Make the parts as tasks of Ray: `ray`, or `ray://HOST:PORT`."""

    def decisive(self) -> dict[str, Any]:
        """The options that the output depends on, as JSON."""
        without = {"output", "save_tokenizer", "workers", "engine", "overwrite", "allow_skipped"}
        if self.parts is None:  # as in the manifests from before it
            without.add("parts")
        if self.dedupe is None:  # likewise
            without.add("dedupe")
        return self.model_dump(mode="json", exclude=without | set(_STEPS))

    def steps(self) -> list[str]:
        """The fields that ask for one step of a run in parts."""
        given = {name: getattr(self, name) for name in _STEPS}
        return [name for name, value in given.items() if value is not None and value is not False]

    @field_validator("input", "include", "exclude", "hf_configs", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("output", "save_tokenizer", mode="before")
    @classmethod
    def _a_folder(cls, value: Any) -> Any:
        if isinstance(value, str) and not value.strip():
            raise ValueError("must name a folder")
        return value

    @field_validator("output", "save_tokenizer")
    @classmethod
    def _of_the_user(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser()

    @field_validator(
        "input",
        "hf_dataset",
        "hf_config",
        "hf_split",
        "hf_revision",
        "include",
        "exclude",
        "text_column",
        "adapter_module",
        "tokenizer_path",
    )
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        """An empty path would be the working directory, an empty name the default."""
        given = value if isinstance(value, tuple) else () if value is None else (value,)
        if not all(text.strip() for text in given):
            raise ValueError("must not be empty; leave it out")
        return value

    @field_validator("val_fraction")
    @classmethod
    def _fraction(cls, value: float) -> float:
        if not 0 <= value < 1:
            raise ValueError("must be at least 0 and below 1; 0.01 holds out one document in 100")
        return value

    @field_validator("min_frequency", "train_characters", "shard_size", "workers")
    @classmethod
    def _positive(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError("must be 1 or more")
        return value

    @field_validator("workers")
    @classmethod
    def _not_masses(cls, value: int | None) -> int | None:
        if value is not None and value > MOST_WORKERS:
            raise ValueError(f"must be {MOST_WORKERS} or less: each is a process")
        return value

    @field_validator("parts")
    @classmethod
    def _some_parts(cls, value: int | None) -> int | None:
        if value is not None and not 1 <= value <= MOST_PARTS:
            raise ValueError(f"must be 1 to {MOST_PARTS}")
        return value

    @field_validator("cluster")
    @classmethod
    def _of_ray(cls, value: str | None) -> str | None:
        if value is not None and value != "ray":
            kind, _, address = value.partition("://")
            host, _, port = address.rpartition(":")
            if kind != "ray" or not host or not (port.isdecimal() and 0 < int(port) < 2**16):
                raise ValueError("must be ray, or ray://HOST:PORT with the port of Ray's clients")
        return value

    @field_validator("min_length")
    @classmethod
    def _not_negative(cls, value: int) -> int:
        if value < 0:
            raise ValueError("must be 0 or more")
        return value

    @field_validator("vocab_size")
    @classmethod
    def _room_for_bytes(cls, value: int | None) -> int | None:
        from light_llm.tokenizer import MIN_BPE_VOCAB

        if value is not None and value < MIN_BPE_VOCAB:
            raise ValueError(
                f"must be {MIN_BPE_VOCAB} or more: BPE starts from the 256 bytes and the end mark"
            )
        if value is not None and value > MOST_IDS:
            raise ValueError(f"must be {MOST_IDS} or less")
        return value

    @field_validator("hf_configs")
    @classmethod
    def _names_of_folders(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not name or "/" in name or name.startswith(".") or name in _RESERVED:
                raise ValueError(f"must be names of folders: {name!r} cannot be; use hf_config")
        if len(set(value)) < len(value):
            raise ValueError("must name each configuration once")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> PreprocessConfig:
        if not self.input and self.hf_dataset is None:
            raise ValueError("input or hf_dataset is required: files to read, or a dataset's name")
        if self.input and self.hf_dataset is not None:
            raise ValueError(
                f"input={self.input[0]!r} and hf_dataset={self.hf_dataset!r} are both set; "
                "leave out one of the two"
            )
        absent, needed = (
            (_FILES_ONLY, "input") if self.hf_dataset is not None else (_HUB_ONLY, "hf_dataset")
        )
        for field in absent:
            if getattr(self, field):
                raise ValueError(
                    f"{field}={getattr(self, field)!r} has no meaning without {needed}"
                )
        if self.dedupe is not None and self.hf_dataset is not None:
            raise ValueError(
                f"dedupe={self.dedupe!r} reads its input twice, and a dataset is streamed; "
                f"download its files (hf download --repo-type dataset {self.hf_dataset}), and give "
                "them as input, or give --input hf://datasets/NAME"
            )
        if self.hf_config is not None and self.hf_configs:
            raise ValueError("hf_config and hf_configs are both set; leave out one of the two")
        if self.adapter_module is not None and self.text_column is not None:
            raise ValueError(
                "adapter_module and text_column are both set, and the adapter says what the text "
                "is; leave out one of the two"
            )
        return self

    @model_validator(mode="after")
    def _one_step(self) -> PreprocessConfig:
        steps = self.steps()
        if steps and self.parts is None:
            raise ValueError(
                f"{steps[0]}={getattr(self, steps[0])!r} has no meaning without parts: the number "
                "of parts that the input is cut into"
            )
        if len(steps) > 1:
            raise ValueError(
                f"{' and '.join(steps)} are set, and each is a command of its own: leave out "
                f"{'one of the two' if len(steps) == 2 else 'all but one'}"
            )
        if self.parts is not None and self.hf_dataset is not None:
            raise ValueError(
                f"parts={self.parts} cuts the files of input, and a dataset is streamed; download "
                f"its files (hf download --repo-type dataset {self.hf_dataset}), and give them as "
                "input"
            )
        if self.part is not None and self.parts is not None and not 0 <= self.part < self.parts:
            raise ValueError(
                f"part={self.part} must be 0 to {self.parts - 1} with parts={self.parts}"
            )
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> PreprocessConfig:
        if self.add_special_tokens and self.tokenizer_path is None:
            raise ValueError(
                "add_special_tokens=True has no meaning without tokenizer_path: a tokenizer that "
                "is trained has no template; leave it out"
            )
        if self.tokenizer == "hf" and self.tokenizer_path is None:
            raise ValueError(
                "tokenizer='hf' needs tokenizer_path: a Hugging Face name or a saved folder"
            )
        for field in ("vocab_size", "min_frequency", "train_characters"):
            value = getattr(self, field)
            if value is not None and self.tokenizer_path is not None:
                raise ValueError(
                    f"{field}={value} is for training a tokenizer, and with tokenizer_path none "
                    "is trained; leave out one of the two"
                )
            if value is not None and self.tokenizer == "char":
                raise ValueError(
                    f"{field}={value} has no meaning for a char tokenizer, which has one id per "
                    "character; leave it out"
                )
        return self
