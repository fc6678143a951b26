"""What one run of llm-preprocess is asked to do."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import field_validator, model_validator

from light_llm.configfile import Config

DEFAULT_VOCAB_SIZE = 8192
DEFAULT_MIN_FREQUENCY = 2


class PreprocessConfig(Config):
    """Text in, shards out. The flags of llm-preprocess are these fields, with dashes."""

    input: tuple[str, ...]
    output: Path
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    text_column: str = "text"
    min_length: int = 1
    """Documents of fewer characters are skipped; so are those of white space alone, always."""

    tokenizer: Literal["bpe", "char", "hf"] | None = None
    """The kind to train; with tokenizer_path the kind that is expected there. None: bpe, any."""
    tokenizer_path: str | None = None
    vocab_size: int | None = None
    min_frequency: int | None = None

    val_fraction: float = 0.01
    shuffle_seed: int | None = None
    """Mix the documents' order with this seed. None: in the order of the sorted input."""
    shard_size: int = 50_000_000
    """Tokens; only a longer document makes a longer shard."""
    workers: int | None = None
    """Threads that tokenize. None: one per core. The shards do not depend on it."""
    overwrite: bool = False

    @field_validator("input")
    @classmethod
    def _some_input(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("must name at least one file, folder or glob")
        return value

    @field_validator("val_fraction")
    @classmethod
    def _fraction(cls, value: float) -> float:
        if not 0 <= value < 1:
            raise ValueError("must be at least 0 and below 1; 0.01 holds out one document in 100")
        return value

    @field_validator("min_frequency", "shard_size", "workers")
    @classmethod
    def _positive(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError("must be 1 or more")
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
        return value

    @model_validator(mode="after")
    def _one_origin(self) -> PreprocessConfig:
        if self.tokenizer == "hf" and self.tokenizer_path is None:
            raise ValueError(
                "tokenizer='hf' needs tokenizer_path: a Hugging Face name or a saved folder"
            )
        for field in ("vocab_size", "min_frequency"):
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
