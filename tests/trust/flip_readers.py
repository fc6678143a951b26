"""The files that tests/trust/flips.py damages, and the readers of the product that read each.

A reader returns what the program takes from its file, as a value whose `repr` tells all of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VOCAB = 300
TEXTS = ("the cat sat on a mat", "far away, a house\n\tand 7 dogs: café", "")

Read = Callable[[Path], Any]
"""Of the damaged file; the working directory is the base's `given/`."""


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    `covered`: a checksum lies over the file, or its content is compared with that of another one.
    So whatever was changed in it is refused, told by a warning or a note, or makes no difference.
    Where it is False, some flips make another legal file, which nothing can tell from the first;
    then it must be read or refused, and no more.
    """

    name: str
    glob: str
    readers: tuple[Read, ...]
    covered: bool = True
    joins: bool = False
    """Two of them, one behind the other, are a file of the kind too."""
    resealed: bool = False
    """Record the damaged file's own digest in config.json, as an attacker would."""
    weight: int = 2


def digest(parts: Iterable[Any]) -> str:
    """SHA-256 of arrays and texts."""
    whole = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            whole.update(f"{part.dtype} {part.shape} ".encode() + part.tobytes())
        else:
            whole.update(repr(part).encode())
    return whole.hexdigest()


def windows(path: Path) -> Any:
    """What training takes of a folder of shards."""
    from light_jax.data import TokenStream

    stream = TokenStream(path.parent, seq_len=16, seed=0, vocab_size=VOCAB)
    rows = [(shard.rows.tolist(), shard.tokens.tolist()) for shard in stream.shards]
    return rows, digest([stream.windows(np.arange(len(stream)))])


def documents(path: Path) -> Any:
    """What `llm-data stats` counts."""
    from light_jax.data import stats

    counted = stats.count(path, "train_data")
    return digest([*counted.lengths, *counted.ids])


def entropy(path: Path) -> Any:
    """What `llm-preprocess` reads of its own shards."""
    from light_llm.preprocess import unigram_entropy
    from light_llm.preprocess.shards import counts

    return unigram_entropy(path), counts(path)


def texts(path: Path) -> Any:
    """What `llm-preprocess` takes from a file of a corpus."""
    from light_llm.preprocess.rows import RowText
    from light_llm.preprocess.sources import read_file

    return digest((each.source, each.text) for each in read_file(path, RowText(("text",))))


def manifest(path: Path) -> Any:
    """What a run takes from the manifest beside its shards."""
    from light_llm.preprocess.listing import document_end_of, manifests, vocabulary_of

    shards = str(path.parent / "train")
    listed = [
        (sorted(map(os.path.relpath, each.shards)), sorted(each.tokenizer.items()))
        for each in manifests(sorted(Path(shards).glob("*.parquet")))
    ]
    return vocabulary_of(shards), document_end_of(shards), listed


def shards_tokenizer(path: Path) -> Any:
    """What `llm-data` and `llm-eval` read beside the shards."""
    from light_llm.preprocess.listing import tokenizer_beside
    from light_llm.tokenizer import load_tokenizer

    folder = tokenizer_beside(Path("data/train"))
    assert folder is not None
    return _taken_of(load_tokenizer(folder, fetch=False))


def named_tokenizer(path: Path) -> Any:
    """What `llm-preprocess --tokenizer-path` reads."""
    from light_llm.preprocess import PreprocessConfig
    from light_llm.preprocess.train import load_named

    config = PreprocessConfig(input=["corpus"], output="pre", tokenizer_path=str(path.parent))
    return _taken_of(load_named(config, str(path.parent)))


def runs_tokenizer(path: Path) -> Any:
    """What `llm-run` reads."""
    from light_llm.checkpoint.reading import read_checkpoint
    from light_llm.checkpoint.tokenizer import find_tokenizer

    found = find_tokenizer(read_checkpoint("fresh/final"))
    assert found is not None
    return _taken_of(found.tokenizer)


def _taken_of(found: Any) -> Any:
    ids = [list(found.encode(text)) for text in TEXTS]
    back = found.decode(list(range(0, found.vocab_size, 3)))
    return found.vocab_size, found.bos_id, found.eos_id, ids, back


def torch_model(path: Path) -> Any:
    """What `llm-run` loads."""
    from light_llm.checkpoint.loading import load_transformer

    model = load_transformer(_prefix(path))
    return model.cfg, digest(x for k, v in model.state_dict().items() for x in (k, v.numpy()))


def jax_model(path: Path) -> Any:
    import jax
    from flax import nnx

    from conversion import load_jax

    model = load_jax(_prefix(path))
    leaves = jax.tree.leaves(nnx.state(model))
    return model.cfg, digest(np.asarray(leaf) for leaf in leaves)


def checkpoint(path: Path) -> Any:
    """What every command takes from a config.json, paths apart."""
    from light_jax.config import TrainingConfig, config_of
    from light_llm.checkpoint.reading import model_config, read_checkpoint

    found = read_checkpoint(_prefix(path))
    paths = TrainingConfig.path_keys
    settings = {key: value for key, value in found.snapshot.items() if key not in paths}
    config_of(found)
    return settings, found.record, model_config(found)


def resumed(path: Path) -> Any:
    """What a resume starts from."""
    import jax

    from light_jax.config import load_config
    from light_jax.training.run import fill, prepare

    run = prepare(load_config("fresh.yaml"), "fresh/final")
    state = fill(run)
    return run.host, run.changes, digest(np.asarray(leaf) for leaf in jax.tree.leaves(state))


def settings(path: Path) -> Any:
    """What `llm-train` reads of a config file."""
    from light_jax.config import load_config

    return load_config(path)


def _prefix(path: Path) -> Path:
    return Path("fresh") / path.name.partition(".")[0]


KINDS = (
    Kind("shard", "data/*/*.parquet", (windows, documents, entropy), weight=6),
    Kind("parquet of text", "corpus/*.parquet", (texts,), covered=False, weight=4),
    Kind("gzip", "corpus/*.gz", (texts,), joins=True),
    Kind("JSON lines", "corpus/*.jsonl", (texts,), covered=False, weight=1),
    Kind("manifest", "data/manifest.json", (manifest,)),
    Kind("shards' tokenizer", "data/tokenizer/*", (shards_tokenizer, named_tokenizer)),
    Kind("run's tokenizer", "fresh/tokenizer/*", (runs_tokenizer,)),
    Kind("weights", "fresh/final.safetensors", (torch_model, jax_model)),
    Kind(
        "weights, resealed",
        "fresh/final.safetensors",
        (torch_model, jax_model),
        False,
        resealed=True,
    ),
    Kind("config.json", "fresh/final.config.json", (checkpoint, torch_model), weight=3),
    Kind("config.yaml", "fresh.yaml", (settings,), covered=False, weight=1),
    Kind("state", "fresh/final.state/**/*", (resumed,)),
    Kind("state, resealed", "fresh/final.state/**/*", (resumed,), False, resealed=True),
)
