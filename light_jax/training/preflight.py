"""What must hold before a run starts: one list of small checks.

`run.prepare` runs them at a start, where the first that fails refuses the run; `check` runs the
same list and goes on after each. Which of the two happens is `under`'s affair.
"""

from __future__ import annotations

import contextlib
import uuid
import warnings
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
from light_jax.data.mixed import MixedStream, Stream, stream_of
from light_jax.parallel.hosts import is_main
from light_jax.parallel.sharding import check_batch, check_heads, make_mesh, warn_of_copies
from light_jax.reporting.trackers import check_tracker, key_of
from light_jax.sources import DataSource
from light_jax.state import HostState, Tag
from light_jax.training.sampling import prompts_of
from light_llm.checkpoint.digests import verify
from light_llm.checkpoint.folder import check_like_folder
from light_llm.checkpoint.hub import starting_weights
from light_llm.checkpoint.parts import is_weights
from light_llm.checkpoint.reading import model_config, read_checkpoint, steadily
from light_llm.models.transformer.config import TransformerConfig
from light_llm.models.transformer.mask import document_end_of
from light_llm.preprocess.manifest import check_vocabulary, manifests

MANY_EPOCHS = 20
PADDING = 128
"""A vocabulary that is rounded up to a multiple of this is no mistake: hardware likes it."""
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
            _warn_of_warmup(cfg)
        with under("model.max_seq_len"):
            _warn_of_positions(cfg)
    if tag is None and cfg.init_from is not None:
        with under("init_from"):
            _verify_weights(cfg.init_from, cfg.model)
            if is_main() and found.train is not None:
                warn_of_weights(cfg.init_from, _paths(found.train))
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
                check_vocabulary(_paths(stream), cfg.model.vocab_size, name)
    if not is_main() or found.train is None:
        return
    with under("val_data"):
        if found.val is not None:
            warn_of_overlap(found.train.shards, found.val.shards)
    with under("train_data"):
        warn_of_tokenizers(
            path for each in (found.train, found.val) if each for path in _paths(each)
        )
    with under("model.vocab_size"):
        _warn_of_vocabulary(cfg, found.train)
    with under(DOCUMENTS):
        _warn_of_ends(cfg, found.train)
    with under("num_steps"):
        _warn_of_epochs(cfg, found.train)


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


def epochs(cfg: TrainingConfig, train: Stream) -> list[tuple[str, float, int]]:
    """(what, how often all steps together see it, its tokens) of the training data, or of each of
    its sources."""
    if not isinstance(train, MixedStream):
        return [("train_data", cfg.num_windows / len(train), train.num_tokens)]
    taken = zip(train.taken(cfg.num_windows), train.streams, strict=True)
    return [
        (f"train_data's source {source.name}", source.epochs, stream.num_tokens)
        for source, stream in taken
    ]


def _stream(cfg: TrainingConfig, data: str | list[str] | list[DataSource], name: str) -> Stream:
    return stream_of(
        data,
        seq_len=cfg.seq_len,
        seed=cfg.seed,
        vocab_size=cfg.model.vocab_size,
        window_order=cfg.window_order if name == "train_data" else "sequential",
        field=name,
    )


def _paths(stream: Stream) -> list[str]:
    return [shard.path for shard in stream.shards]


def _warn_of_warmup(cfg: TrainingConfig) -> None:
    """Warn of a learning rate that never gets to its height."""
    warmup = cfg.scheduler.warmup_steps
    if warmup > cfg.num_steps:
        warnings.warn(
            f"scheduler.warmup_steps={warmup} is more than num_steps={cfg.num_steps}, so the "
            f"learning rate never reaches optimizer.lr={cfg.optimizer.lr:g}: lower it to about "
            f"{max(1, cfg.num_steps // 10)}, or raise num_steps",
            stacklevel=2,
        )


def _warn_of_positions(cfg: TrainingConfig) -> None:
    """Warn of learned positions that no window reaches."""
    trained, rows = cfg.seq_len, cfg.model.max_seq_len
    if cfg.model.positional.encoding == "learned" and trained < rows:
        warnings.warn(
            f"seq_len={trained} trains only positions 0 to {trained - 1}; the other "
            f"{rows - trained} learned ones get no gradient and stay noise: raise seq_len, or "
            f"lower model.max_seq_len={rows} to it",
            stacklevel=2,
        )


def _warn_of_vocabulary(cfg: TrainingConfig, train: Stream) -> None:
    """Warn of rows of the embedding that no token of the tokenizer uses.

    The weights of init_from have as many rows as they have.
    """
    if cfg.init_from is not None:
        return
    size = max((each.vocab_size for each in manifests(_paths(train))), default=None)
    given = cfg.model.vocab_size
    padded = given % PADDING == 0 and size is not None and given - size < PADDING
    if size is not None and size < given and not padded:
        warnings.warn(
            f"model.vocab_size={given} is above the {size} ids of the tokenizer of train_data; "
            f"the other {given - size} rows of the embedding are never trained: set it to {size}, "
            f"or leave it out; {-(-size // PADDING) * PADDING} is the next multiple of {PADDING}",
            stacklevel=2,
        )


def _warn_of_ends(cfg: TrainingConfig, train: Stream) -> None:
    """Warn of an id at which documents are told apart that ends none of them."""
    attention = cfg.model.attention
    if not attention.document_mask or attention.document_end is None:
        return
    ends = {each.tokenizer.get("eos_id") for each in manifests(_paths(train))}
    if ends and attention.document_end not in ends:
        warnings.warn(
            f"model.attention.document_end={attention.document_end} is not the end-of-text id of "
            f"the tokenizer of train_data, {', '.join(sorted(map(str, ends)))}; leave it out to "
            "take that",
            stacklevel=2,
        )


def _warn_of_epochs(cfg: TrainingConfig, train: Stream) -> None:
    """Warn of data that is repeated so often that a model learns it by heart."""
    for what, count, tokens in epochs(cfg, train):
        if count <= MANY_EPOCHS:
            continue
        most = int(cfg.num_steps * MANY_EPOCHS / count)
        warnings.warn(
            f"num_steps={cfg.num_steps} is {count:,.1f} epochs of {what} ({tokens:,} "
            f"tokens); after {MANY_EPOCHS} of them little is learned but the text itself: add "
            f"data, or lower num_steps{f' to {most}' if most else ''}",
            stacklevel=2,
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
