"""What every start says of a config that would run: warnings, and the vocabulary of the shards."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from tiny_runs import command, write_config

from light_jax.config import load_config
from light_jax.training.loop import run_config
from light_jax.training.run import prepare
from light_llm.errors import UserError
from light_llm.preprocess import PreprocessConfig, preprocess

TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer.\n"


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """data/train and data/val with their manifest; returns the size of their tokenizer."""
    monkeypatch.chdir(tmp_path)
    Path("text").mkdir()
    for number in range(40):
        Path(f"text/{number}.txt").write_text(f"{number} {TEXT}")
    preprocess(
        PreprocessConfig(
            input=("text",), output=Path("data"), tokenizer="char", val_fraction=0.2, workers=1
        )
    )
    return json.loads(Path("data/manifest.json").read_text())["tokenizer"]["vocab_size"]


def written(**changes):
    given = {"train_data": "data/train", "val_data": "data/val", "model": {"vocab_size": ...}}
    return write_config(Path("c.yaml"), **(given | changes))


def warned(**changes):
    """The warnings of a start."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepare(load_config(written(**changes)), None)
    return [str(each.message) for each in caught if each.category is UserWarning]


def masked(**attention):
    return {"vocab_size": ..., "attention": {"document_mask": True, **attention}}


@pytest.mark.parametrize(
    "paths",
    ["data/train", "data/train/", "data/train/*.parquet", "data/**/*.parquet", ["data/train"]],
)
def test_a_vocabulary_that_is_left_out_is_the_tokenizers(corpus, paths):
    assert load_config(written(train_data=paths)).model.vocab_size == corpus
    assert corpus != 131


def test_a_vocabulary_that_is_given_or_unknown_stays(corpus):
    assert load_config(written(model={"vocab_size": 131})).model.vocab_size == 131
    shutil.copytree("data/train", "bare/train")
    assert load_config(written(train_data="bare/train")).model.vocab_size == 32000
    assert load_config(written(train_data="nothing")).model.vocab_size == 32000
    manifest = json.loads(Path("data/manifest.json").read_text())
    manifest["tokenizer"]["vocab_size"] = 2**31
    Path("data/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json: the manifest of the shards is damaged"):
        load_config(written())


def test_a_snapshot_holds_the_numbers_and_a_resume_resolves_the_same(corpus):
    """Even where the manifest has stayed on another machine."""
    config = written(num_steps=2, scheduler={"warmup_steps": 1}, model=masked())
    run_config(config)
    snapshot = json.loads(Path("out/final.config.json").read_text())["model"]
    assert (snapshot["vocab_size"], snapshot["attention"]["document_end"]) == (corpus, 1)
    assert load_file("out/final.safetensors")["tok_emb.weight"].shape[0] == corpus
    assert Path("out/c.yaml").read_bytes() == config.read_bytes()
    assert "vocab_size" not in config.read_text()
    text = config.read_text().replace("num_steps: 2", "num_steps: 3")
    config.write_text(text)
    run_config(config, "auto")
    Path("data/manifest.json").unlink()
    config.write_text(text.replace("num_steps: 3", "num_steps: 4"))
    assert load_config(config).model.vocab_size == 32000
    assert load_config(config).model.attention.document_end is None
    run_config(config, "auto")
    assert load_file("out/final.safetensors")["tok_emb.weight"].shape[0] == corpus
    written(num_steps=5, model=masked() | {"vocab_size": corpus + 1})  # given, it counts
    with pytest.raises(UserError, match=f"model.vocab_size: {corpus} -> {corpus + 1}"):
        run_config(config, "auto")


def test_the_end_of_documents_is_the_tokenizers(corpus):
    assert load_config(written(model=masked())).model.attention.document_end == 1  # of characters
    assert load_config(written(model=masked(document_end=3))).model.attention.document_end == 3
    Path("data/manifest.json").unlink()
    found = load_config(written(model=masked(), tokenizer_path="data/tokenizer"))
    assert found.model.attention.document_end == 1


def test_a_document_mask_without_an_end_mark_is_refused(corpus):
    (told,) = warned(model=masked(document_end=3))
    assert told.startswith("model.attention.document_end=3 is not the end-of-text id")
    with pytest.raises(UserError, match=f"document_end={corpus} must be below"):
        warned(model=masked(document_end=corpus))
    Path("data/manifest.json").unlink()
    done = command("llm-train", written(model={"attention": {"document_mask": True}}), cwd=".")
    assert done.returncode == 2
    assert "model.attention.document_mask=True needs the id of the token" in done.stderr
    assert "set model.attention.document_end" in done.stderr
    done = command("llm-train", "c.yaml", "--check", cwd=".")
    assert done.returncode == 2
    assert done.stdout.count("needs the id of the token") == 1


def test_rows_that_no_token_uses_are_told(corpus):
    (told,) = warned(model={"vocab_size": 200})
    assert told.startswith(f"model.vocab_size=200 is above the {corpus} ids")
    assert f"the other {200 - corpus} rows" in told
    assert f"set it to {corpus}" in told


def test_a_vocabulary_of_the_tokenizers_size_or_padded_is_fine(corpus):
    assert warned() == []
    assert corpus < 128
    assert warned(model={"vocab_size": 128}) == []
    assert len(warned(model={"vocab_size": 256})) == 1


def test_a_warmup_longer_than_the_run_is_told(corpus):
    (told,) = warned(scheduler={"warmup_steps": 7})
    assert told.startswith("scheduler.warmup_steps=7 is more than num_steps=6")
    assert warned(scheduler={"warmup_steps": 6}) == []
    assert len(warned(scheduler={"warmup_steps": ...})) == 1  # the default, 100


def test_more_than_twenty_epochs_are_told(corpus):
    (told,) = warned(num_steps=5000)
    assert told.startswith("num_steps=5000 is ")
    most = int(told.rpartition(" to ")[2])
    assert warned(num_steps=most) == []
    assert len(warned(num_steps=most + 10)) == 1


def test_validation_data_within_the_training_data_are_told(corpus):
    (told,) = warned(train_data=["data/train", "data/val"])
    assert "val_data and train_data overlap" in told


def test_shards_of_different_tokenizers_are_told(corpus):
    sources = [{"path": "data/train", "weight": 1}, {"path": "more/train", "weight": 1}]
    options = {"output": Path("more"), "val_fraction": 0.2, "workers": 1}
    preprocess(PreprocessConfig(input=("text",), tokenizer_path="data/tokenizer", **options))
    assert not any("name different tokenizers" in text for text in warned(train_data=sources))
    Path("text/0.txt").write_text("another alphabet: äöü")
    preprocess(PreprocessConfig(input=("text",), tokenizer="char", overwrite=True, **options))
    (told,) = [text for text in warned(train_data=sources) if "name different tokenizers" in text]
    assert all(f"{Path(name).absolute()}/manifest.json" in told for name in ("data", "more"))
