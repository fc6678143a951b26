"""Tokenizers as people have them, and ids that do not mean the same everywhere."""

from __future__ import annotations

import importlib.util
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign_models import save_tokenizer
from tiny_runs import TINY, merged

from light_jax.config import TrainingConfig
from light_jax.data import TokenStream
from light_jax.data.meaning import Meaning, warn_of_tokenizers, warn_of_weights
from light_jax.evaluation.plan import make_plan
from light_jax.evaluation.text import size_of_text
from light_jax.training.preflight import inspect
from light_llm.errors import UserError
from light_llm.preprocess import PreprocessConfig, preprocess
from light_llm.preprocess.listing import manifests
from light_llm.tokenizer import load_tokenizer

TEXT = "the sea and the wind and the sea again, " * 30
BOM = "\ufeff"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder of a small BPE, as transformers saves it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, TEXT, 280)
    return folder


def test_no_text_is_cut_or_padded_because_it_once_was(saved, tmp_path):
    """A tokenizer.json keeps the truncation and padding of the last call before it was saved."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(saved / "tokenizer.json"))
    backend.enable_truncation(8)
    backend.enable_padding(length=64)
    shutil.copytree(saved, tmp_path / "cut")
    backend.save(str(tmp_path / "cut/tokenizer.json"))
    whole, cut = load_tokenizer(saved), load_tokenizer(tmp_path / "cut")
    assert len(whole.encode(TEXT)) > 64
    assert cut.encode_batch([TEXT, "sea"]) == whole.encode_batch([TEXT, "sea"])
    assert cut.encode("sea", add_special_tokens=True) == whole.encode("sea", True)


def test_a_byte_order_mark_is_no_fault_and_is_not_copied(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "marked")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (saved / name).read_text()
        (tmp_path / "marked" / name).write_text(BOM + text, "utf-8")
    tokenizer = load_tokenizer(tmp_path / "marked")
    assert tokenizer.encode(TEXT) == load_tokenizer(saved).encode(TEXT)
    tokenizer.save(tmp_path / "copy")
    for path in (tmp_path / "copy").iterdir():
        assert not path.read_text("utf-8").startswith(BOM)


@pytest.mark.skipif(
    importlib.util.find_spec("sentencepiece") is not None, reason="sentencepiece is here"
)
def test_a_model_of_sentencepiece_says_which_package_reads_it(tmp_path, capfd):
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(UserError, match="pip install sentencepiece tiktoken\nGive a folder that"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\x80\xff")
    with pytest.raises(UserError, match=r"give a tokenizer.json, or the folder that a tokenizer"):
        load_tokenizer(tmp_path / "tokenizer.model")


@pytest.fixture(scope="module")
def corpora(saved, tmp_path_factory) -> Path:
    """`a`, `b` and `again` are shards of the same text; only `b` has ids of its own."""
    folder = tmp_path_factory.mktemp("corpora")
    for number in range(40):
        (folder / "in").mkdir(exist_ok=True)
        (folder / f"in/{number}.txt").write_text(f"{TEXT[:400]} number {number}")
    save_tokenizer(folder / "other", "a boat, a bird, a bay " * 30, 280)
    # the folder of a model, whose weights are no part of its tokenizer; and another wording
    shutil.copytree(saved, folder / "model")
    (folder / "model/model.safetensors").touch()
    config = json.loads((folder / "model/tokenizer_config.json").read_text())
    config["model_max_length"] = 77
    (folder / "model/tokenizer_config.json").write_text(json.dumps(config))
    for name, tokenizer in (("a", saved), ("b", folder / "other"), ("again", folder / "model")):
        preprocess(
            PreprocessConfig(
                input=(str(folder / "in"),),
                output=folder / name,
                tokenizer_path=str(tokenizer),
                val_fraction=0.2,
                workers=1,
            )
        )
    return folder


def shards(*folders: Path) -> list[str]:
    return [str(path) for folder in folders for path in sorted(folder.rglob("*.parquet"))]


def warned(call, *args) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*args)
    return [str(each.message) for each in caught]


def test_shards_of_different_tokenizers_are_told(corpora):
    assert not warned(warn_of_tokenizers, shards(corpora / "a/train", corpora / "a/val"))
    assert not warned(warn_of_tokenizers, shards(corpora / "a", corpora / "again"))
    (warning,) = warned(warn_of_tokenizers, shards(corpora / "a/train", corpora / "b/val"))
    for name in ("a", "b"):
        assert str(corpora / name / "manifest.json") in warning
    assert "name different tokenizers" in warning


def test_a_tokenizer_is_told_from_others_by_its_ids_alone(corpora, saved):
    """Not by the files that lie beside it, nor by the wording of its config."""
    listings = {name: manifests(shards(corpora / name))[0] for name in ("a", "b", "again")}
    for folder, is_of in ((saved, "a"), (corpora / "model", "a"), (corpora / "other", "b")):
        tokenizer = load_tokenizer(folder)
        for name, listing in listings.items():
            assert Meaning(tokenizer).is_that_of(listing) == ((name == "b") == (is_of == "b"))


def test_weights_with_another_tokenizer_than_the_shards_are_told(corpora, checkpoint):
    assert not warned(warn_of_weights, str(checkpoint), shards(corpora / "a"))
    (warning,) = warned(warn_of_weights, str(checkpoint), shards(corpora / "b"))
    assert "has another tokenizer" in warning
    assert str(corpora / "b/manifest.json") in warning
    assert not warned(warn_of_weights, str(checkpoint.parent / "none"), shards(corpora / "b"))


def test_a_start_tells_both(corpora, checkpoint, tmp_path):
    changes = {"train_data": str(corpora / "b/train"), "val_data": str(corpora / "a/val")}
    changes |= {"init_from": str(checkpoint), "checkpoint_dir": str(tmp_path / "out")}
    cfg = TrainingConfig.model_validate(merged(TINY, changes | {"model": {"vocab_size": 280}}))
    told = "\n".join(warned(inspect, cfg, None))
    assert "name different tokenizers" in told
    assert f"init_from={str(checkpoint)!r} has another tokenizer" in told


def test_bits_per_byte_of_ids_of_another_tokenizer_are_not_known(corpora, checkpoint):
    paths = [str(corpora / name / "val") for name in ("a", "b")]
    plan = make_plan(str(checkpoint), paths)
    (_, fits), (_, other) = plan.sources
    assert size_of_text(plan, fits) > 0
    with pytest.raises(UserError, match=r"b/manifest.json names another tokenizer than"):
        size_of_text(plan, other)


@pytest.fixture(scope="module")
def checkpoint(corpora) -> Path:
    """What a run on `a` leaves of its weights and tokenizer, by hand."""
    from safetensors.numpy import save_file

    from conversion.mapping import table
    from light_llm.checkpoint.digests import digest
    from light_llm.checkpoint.reading import Record

    folder = corpora / "run"
    folder.mkdir()
    changes = {"train_data": "a", "val_data": "b", "model": {"vocab_size": 280}}
    cfg = TrainingConfig.model_validate(merged(TINY, changes))
    weights = {entry.key: np.zeros(entry.shape, np.float32) for entry in table(cfg.model)}
    save_file(weights, folder / "best.safetensors")
    record = Record(files={".safetensors": digest(folder / "best.safetensors")})
    snapshot = cfg.model_dump() | {"checkpoint": record.model_dump()}
    (folder / "best.config.json").write_text(json.dumps(snapshot))
    shutil.copytree(corpora / "a/tokenizer", folder / "tokenizer")
    return folder / "best"


def test_a_shard_with_its_tokens_under_another_name_says_what_to_rename(tmp_path):
    rows = pa.array([[1, 2, 3] * 20], pa.list_(pa.int32()))
    pq.write_table(pa.table({"input_ids": rows}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"has input_ids; .*rename the column that holds lists"):
        TokenStream(str(tmp_path), seq_len=16, seed=0)


def test_ids_beyond_16_bits_stay_as_they_are(tmp_path):
    ids = [2**16 - 1, 2**16, 2**16 + 1, 119_546, 2**31 - 1] * 7
    for name, kind in (("uint32", pa.uint32()), ("int32", pa.int32()), ("int64", pa.int64())):
        folder = tmp_path / name
        folder.mkdir()
        pq.write_table(pa.table({"tokens": pa.array([ids], pa.list_(kind))}), folder / "a.parquet")
        stream = TokenStream(str(folder), seq_len=16, seed=0, vocab_size=None)
        assert stream.windows(np.array([0])).tolist() == [ids[:17]]
