"""TrainingConfig: one YAML or JSON file is the single source of truth of a run.

Every key, its default and its rule; docs/train.md explains each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from light_jax.othernames import OTHER_NAMES
from light_jax.sections import MeshConfig, NonNegativeFloat, OptimizerConfig, SchedulerConfig
from light_jax.sources import DataPaths, check_data, check_form, is_mixture, paths_of
from light_llm.checkpoint.parts import parse_size
from light_llm.checkpoint.reading import Checkpoint, model_config
from light_llm.configcheck import validate
from light_llm.configfile import Config
from light_llm.configsource import read_source
from light_llm.errors import UserError
from light_llm.models.transformer.config import Positive, PositiveFloat, TransformerConfig

CLUSTER_TIMEOUT = 120.0  # seconds
PROJECT_LETTERS, PROJECT_WITHOUT = 128, "/\\#?%:"  # of Weights & Biases
_NUMBER = r"\s*(?:([0-9]+(?:\.[0-9]+)?)\s*{})?"
TIME = re.compile("".join(_NUMBER.format(unit) for unit in "dhms"))
"""Days, hours, minutes and seconds, each of which may be left out."""


@dataclasses.dataclass(frozen=True)
class Source:
    """The text that a config was parsed from; it does not count when configs are compared."""

    text: bytes = dataclasses.field(default=b"", compare=False)


class TrainingConfig(Config):
    """A run as its config file describes it: data, model, update, devices, checkpoints, reports."""

    path_keys = ("train_data", "val_data", "tokenizer_path", "init_from", "checkpoint_dir")
    hub_keys = ("tokenizer_path", "init_from")
    other_names = OTHER_NAMES

    train_data: DataPaths
    val_data: DataPaths | None = None
    tokenizer_path: str | None = None
    hf_export: bool = False
    model: TransformerConfig = TransformerConfig()
    init_from: str | None = None
    seq_len: Positive = 1024
    batch_size: Positive = 32
    gradient_accumulation_steps: Positive = 1
    num_steps: Positive = 10000
    max_time: PositiveFloat | None = None
    early_stopping_patience: Positive | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    z_loss: NonNegativeFloat | None = None
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    bf16_model_weights: bool = False
    mesh: MeshConfig = MeshConfig()
    cluster_timeout: Annotated[float, Field(ge=1.0)] = CLUSTER_TIMEOUT
    checkpoint_dir: str = "checkpoints"
    save_every: Positive = 1000
    keep_last_n: Positive = 3
    max_shard_size: str = "5GB"
    log_every: Positive = 10
    spike_threshold: PositiveFloat | None = 10.0
    eval_every: Positive = 500
    eval_steps: Positive = 50
    sample_prompts: list[str] | None = None
    sample_every: Positive | None = None
    tracker: Literal["wandb", "tensorboard", "trackio"] | None = None
    use_wandb: bool = False
    use_tensorboard: bool = False
    wandb_project: str = "light-llm"
    wandb_run_name: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    window_order: Literal["sequential", "shuffled"] = "sequential"
    num_workers: Annotated[int, Field(ge=0, le=1024)] = 4
    profile_steps: tuple[Positive, Positive] | None = None
    compile_model: bool = False
    _source: Source = PrivateAttr(default=Source())

    @property
    def source(self) -> Source:
        """Set by `load_config`; empty where the config came from elsewhere."""
        return self._source

    _form_of_data = field_validator("train_data", "val_data", mode="before")(check_form)
    _legal_data = field_validator("train_data", "val_data")(check_data)

    @field_validator("train_data")
    @classmethod
    def _weights(cls, value: Any) -> Any:
        if is_mixture(value) and value[0].weight is None:
            raise ValueError("has no weights; give each entry a `weight`, its part of the tokens")
        return value

    @field_validator("max_time", "cluster_timeout", mode="before")
    @classmethod
    def _seconds(cls, value: Any) -> Any:
        """`2h30m` -> 9000."""
        if not isinstance(value, str):
            return value
        found = TIME.fullmatch(value.strip().lower())
        parts = found.groups() if found else ()
        if any(parts):
            units = zip(parts, (86400, 3600, 60, 1), strict=True)
            return sum(float(part or 0) * unit for part, unit in units)
        try:
            return float(value)
        except ValueError:
            raise ValueError(
                "must be a time such as 90s, 45m, 2h30m or 1d, or a number of seconds"
            ) from None

    @field_validator("profile_steps", mode="before")
    @classmethod
    def _two_steps(cls, value: Any) -> Any:
        pair = isinstance(value, list | tuple) and len(value) == 2
        if value is not None and (not pair or any(isinstance(part, bool) for part in value)):
            raise ValueError("must be two steps, the first and the last, such as [100, 104]")
        return value

    @field_validator("max_shard_size")
    @classmethod
    def _a_size(cls, value: str) -> str:
        parse_size(value)
        return value

    @field_validator("checkpoint_dir")
    @classmethod
    def _on_a_file_system(cls, value: str) -> str:
        if not value:
            raise ValueError("must name a folder")
        if "://" in value:
            raise ValueError(
                "must be a path on a file system that all hosts share, where files can be locked "
                "and renamed; copy its checkpoints to a bucket as they come, with `gcloud storage "
                "rsync -r` or `aws s3 sync`: docs/scale.md says how"
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.seq_len > self.model.max_seq_len:
            raise ValueError(
                f"seq_len={self.seq_len} exceeds model.max_seq_len={self.model.max_seq_len}; "
                "lower seq_len or raise model.max_seq_len"
            )
        if self.bf16_model_weights and self.dtype != "bfloat16":
            raise ValueError(
                f"bf16_model_weights=True needs dtype='bfloat16', not {self.dtype!r}; "
                "change one of them"
            )
        if self.early_stopping_patience is not None and self.val_data is None:
            raise ValueError(
                f"early_stopping_patience={self.early_stopping_patience} needs val_data; set it, "
                "or leave early_stopping_patience out"
            )
        if self.sample_every is not None and not self.sample_prompts:
            raise ValueError(
                f"sample_every={self.sample_every} needs sample_prompts; set them, or leave "
                "sample_every out"
            )
        if "wandb" in self.trackers:
            self._check_project()
        if self.profile_steps is not None:
            self._check_profile(*self.profile_steps)
        if self.scheduler.warmup_steps is None:
            warmup = self.num_steps // 10 if self.scheduler.type == "wsd" else 100
            scheduler = self.scheduler.model_copy(update={"warmup_steps": warmup})
            self.derive(scheduler=scheduler)
        return self

    def _check_project(self) -> None:
        name = self.wandb_project
        wrong = "".join(sorted({letter for letter in name if letter in PROJECT_WITHOUT}))
        if wrong or not 1 <= len(name) <= PROJECT_LETTERS:
            rule = f"holds {wrong}" if wrong else f"has {len(name)} characters"
            raise ValueError(
                f"wandb_project={name!r} {rule}; Weights & Biases takes 1 to {PROJECT_LETTERS} "
                f"characters without any of {PROJECT_WITHOUT} (a team is named by the environment "
                "variable WANDB_ENTITY)"
            )

    def _check_profile(self, first: int, last: int) -> None:
        given = f"profile_steps=[{first}, {last}]"
        if first > last:
            raise ValueError(
                f"{given}: the first step comes after the last; write [{last}, {first}]"
            )
        if last > self.num_steps:
            raise ValueError(
                f"{given} ends after num_steps={self.num_steps}; name steps from 1 to "
                f"{self.num_steps}, or raise num_steps"
            )

    @property
    def max_shard_bytes(self) -> int:
        return parse_size(self.max_shard_size)

    def with_vocabulary(self, vocab_size: int | None) -> Self:
        """The config with this `model.vocab_size`, unless one was given in so many words.

        None changes nothing. What a config takes in this way stays what was not given: a resume
        can still take the number of its checkpoint.
        """
        if vocab_size is None or "vocab_size" in self.model.model_fields_set:
            return self
        model, cfg = self.model.model_copy(), self.model_copy()
        model.derive(vocab_size=vocab_size)
        cfg.derive(model=model)
        return cfg

    def with_document_end(self, end: int | None) -> Self:
        """The config with this `document_end`, as `with_vocabulary` where it is needed."""
        attention = self.model.attention
        given = "document_end" in attention.model_fields_set and attention.document_end is not None
        if end is None or given or not attention.document_mask:
            return self
        attention, model, cfg = attention.model_copy(), self.model.model_copy(), self.model_copy()
        attention.derive(document_end=end)
        model.derive(attention=attention)
        cfg.derive(model=model)
        return cfg

    @property
    def trackers(self) -> list[str]:
        """The names of those that the metrics are sent to, each once."""
        wanted = {
            "wandb": self.use_wandb,
            "tensorboard": self.use_tensorboard,
            "trackio": False,
        }
        return [name for name, also in wanted.items() if also or name == self.tracker]

    def samples_after(self, step: int) -> bool:
        """Whether text is sampled after this step."""
        every = self.sample_every or self.eval_every
        return bool(self.sample_prompts) and (step % every == 0 or step == self.num_steps)

    @property
    def num_windows(self) -> int:
        """Windows of training data that all steps together take."""
        return self.num_steps * self.batch_size * self.gradient_accumulation_steps

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.gradient_accumulation_steps * self.seq_len


def config_of(checkpoint: Checkpoint) -> TrainingConfig:
    """The config that a checkpoint was trained with.

    A snapshot with only `model` gets the defaults for the rest, and no data.

    Raises:
        UserError: its config is not one.
    """
    known = {"train_data": "unknown", "seq_len": model_config(checkpoint).max_seq_len}
    return validate(TrainingConfig, {**known, **checkpoint.snapshot}, checkpoint.files.config)


def load_config(path: str | Path) -> TrainingConfig:
    """Read a config file with what it extends, or a checkpoint's config.json (whose key
    `checkpoint` is set apart).

    `~` and environment variables are replaced in its paths, except in those of a checkpoint's
    config.json, which has them replaced.

    A `model.vocab_size` that the file leaves out is the size of the tokenizer that the training
    shards were written with, if a manifest beside them says it, and else the default. It is looked
    up here, so that every reader of the config finds the same number. So is the id that
    `attention.document_mask` needs; failing that, it is that of `tokenizer_path`.

    Raises:
        UserError: unreadable file, unknown key or illegal value, every problem on its own line.
    """
    source = read_source(path, set_apart="checkpoint")
    cfg = validate(TrainingConfig, source.data, source, expand=not source.snapshot)
    if "vocab_size" not in cfg.model.model_fields_set:
        from light_llm.preprocess.listing import vocabulary_of  # its imports are heavy

        cfg = cfg.with_vocabulary(vocabulary_of(paths_of(cfg.train_data)))
    if cfg.model.attention.document_mask and cfg.model.attention.document_end is None:
        cfg = cfg.with_document_end(_end_of_documents(cfg))
    cfg._source = Source(source.text.encode())
    return cfg


def _end_of_documents(cfg: TrainingConfig) -> int | None:
    """The id of the end mark, by the manifest of `train_data` or else by `tokenizer_path`."""
    from light_llm.preprocess.listing import document_end_of
    from light_llm.tokenizer import load_tokenizer

    end = document_end_of(paths_of(cfg.train_data))
    if end is None and cfg.tokenizer_path is not None:
        with contextlib.suppress(UserError):
            end = load_tokenizer(cfg.tokenizer_path, fetch=False).eos_id
    return end
