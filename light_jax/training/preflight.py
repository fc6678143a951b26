"""What must hold before a run starts: one list of small checks.

`run.prepare` runs them at a start, where the first that fails refuses the run; `check` runs the
same list and goes on after each. Which of the two happens is `under`'s affair.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import Mesh

from light_jax.checkpoint import place, store
from light_jax.checkpoint.hf_export import check_hf_export
from light_jax.checkpoint.weights import check_weights
from light_jax.config import TrainingConfig
from light_jax.data import warn_of_overlap
from light_jax.data.meaning import warn_of_tokenizers, warn_of_weights
from light_jax.data.mixed import Stream, stream_of
from light_jax.parallel.hosts import is_main
from light_jax.parallel.sharding import check_batch, check_heads, make_mesh, warn_of_copies
from light_jax.reporting.trackers import check_tracker, key_of
from light_jax.sources import DataSource
from light_jax.state import HostState, Tag
from light_jax.training import cautions
from light_jax.training.sampling import prompts_of
from light_llm.checkpoint.digests import verify
from light_llm.checkpoint.folder import check_like_folder
from light_llm.checkpoint.hub import starting_weights
from light_llm.checkpoint.parts import is_weights
from light_llm.checkpoint.reading import model_config, read_checkpoint, steadily
from light_llm.models.transformer.config import TransformerConfig
from light_llm.models.transformer.mask import document_end_of
from light_llm.preprocess.listing import check_vocabulary

DOCUMENTS = "model.attention.document_mask"
"""The key that needs an end mark, without which there is no model."""

Under = Callable[[str], contextlib.AbstractContextManager[Any]]
"""The key of a config -> the context in which that key is checked. It may keep a UserError and the
warnings of the block for itself; then the checks go on after the block."""


def at_once(key: str) -> contextlib.AbstractContextManager[Any]:
    """As a start checks: the first error is raised, warnings are printed."""
    return contextlib.nullcontext()


@dataclass
class Inspected:
    """What the checks found; None where a check failed and they went on."""

    mesh: Mesh | None = None
    train: Stream | None = None
    val: Stream | None = None
    host: HostState | None = None
    changes: list[str] = field(default_factory=list)


def inspect(
    cfg: TrainingConfig,
    tag: Tag | None,
    under: Under = at_once,
    devices: Sequence[jax.Device] | None = None,
    *,
    probe: bool = True,
) -> Inspected:
    """Check, before anything large is made, the mesh, the data and that they continue the tag.

    Args:
        devices: of the mesh, if not all that are here.
        probe: whether a place may be written to, to see whether it can be.

    Raises:
        UserError: what is refused, unless `under` kept it.
    """
    found = Inspected()
    with under("mesh"):
        found.mesh = make_mesh(cfg.mesh, devices)
    if found.mesh is not None:
        with under("batch_size"):
            check_batch(cfg.batch_size, found.mesh)
        with under("mesh"):
            check_heads(cfg.model, found.mesh)
            if is_main():
                warn_of_copies(cfg.model, found.mesh)
    if is_main():
        for name in cfg.trackers:
            with under(key_of(name, cfg)):
                check_tracker(name, cfg)
        with under("hf_export"):
            if cfg.hf_export:
                check_hf_export()
        with under("checkpoint_dir"):
            place.check_writable(cfg, tag, probe=probe)
    with under(DOCUMENTS):
        document_end_of(cfg.model)
    with under("sample_prompts"):
        prompts_of(cfg)
    _inspect_data(cfg, found, under)
    if is_main():
        with under("scheduler.warmup_steps"):
            cautions.warn_of_warmup(cfg)
        with under("model.max_seq_len"):
            cautions.warn_of_positions(cfg)
    if tag is None and cfg.init_from is not None:
        with under("init_from"):
            _verify_weights(cfg.init_from, cfg.model)
            if is_main() and found.train is not None:
                warn_of_weights(cfg.init_from, cautions.paths(found.train))
    if found.train is not None:
        with under("resume"):
            found.host, found.changes = _continued(cfg, tag, found.train)
    return found


def _inspect_data(cfg: TrainingConfig, found: Inspected, under: Under) -> None:
    """Index the shards, compare them with the model and with each other."""
    with under("train_data"):
        found.train = _stream(cfg, cfg.train_data, "train_data")
    with under("val_data"):
        if cfg.val_data is not None:
            found.val = _stream(cfg, cfg.val_data, "val_data")
    for name, stream in (("train_data", found.train), ("val_data", found.val)):
        if stream is not None:
            with under("model.vocab_size"):
                check_vocabulary(cautions.paths(stream), cfg.model.vocab_size, name)
    if not is_main() or found.train is None:
        return
    with under("val_data"):
        if found.val is not None:
            warn_of_overlap(found.train.shards, found.val.shards)
    with under("train_data"):
        warn_of_tokenizers(
            path for each in (found.train, found.val) if each for path in cautions.paths(each)
        )
    with under("model.vocab_size"):
        cautions.warn_of_vocabulary(cfg, found.train)
    with under(DOCUMENTS):
        cautions.warn_of_ends(cfg, found.train)
    with under("num_steps"):
        cautions.warn_of_epochs(cfg, found.train)


def _continued(cfg: TrainingConfig, tag: Tag | None, train: Stream) -> tuple[HostState, list[str]]:
    """The state on the host of a new run, or of the resumed one with the settings that changed.

    Raises:
        UserError: a setting or a shard changed that must not.
    """
    if tag is None:
        return HostState(uuid.uuid4().hex, train.fingerprint), []
    return store.check_resumable(tag, cfg, train.fingerprint)


def like_the_resumed(cfg: TrainingConfig, tag: Tag | None) -> TrainingConfig:
    """`cfg` with the vocabulary and the end mark of the run that it resumes, where the config file
    gives none: the manifest may have stayed on another machine."""
    if tag is None:
        return cfg
    model = model_config(tag.checkpoint)
    cfg = cfg.with_document_end(model.attention.document_end)
    return cfg.with_vocabulary(model.vocab_size)


def _stream(cfg: TrainingConfig, data: str | list[str] | list[DataSource], name: str) -> Stream:
    return stream_of(
        data,
        seq_len=cfg.seq_len,
        seed=cfg.seed,
        vocab_size=cfg.model.vocab_size,
        window_order=cfg.window_order if name == "train_data" else "sequential",
        field=name,
    )


def _verify_weights(path_or_prefix: str, model: TransformerConfig) -> None:
    """Check that init_from has the model's weights, with the digests of a config.json beside them.

    A Hugging Face folder has no digests, and its config.json says which model it is.

    Raises:
        UserError: they are missing, damaged or do not fit.
    """
    files = starting_weights(path_or_prefix, fetch=True)
    if files.weights.is_dir():
        check_like_folder(model, files.weights)
        check_weights(files.weights, model)
        return
    if files.config.is_file():
        steadily(
            lambda: read_checkpoint(path_or_prefix),
            lambda checkpoint: verify(checkpoint, is_weights),
        )
    steadily(
        lambda: starting_weights(path_or_prefix, fetch=False),
        lambda files: check_weights(files.weights, model),
    )
