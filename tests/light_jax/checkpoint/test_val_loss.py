"""A tag's config.json records the validation loss of its step, where it was evaluated."""

import json
import shutil

import pytest
from tiny_runs import metrics, train_command, write_config

from light_jax.checkpoint import store
from light_jax.config import config_of
from light_llm.checkpoint.reading import read_checkpoint


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    train_command(write_config(folder / "c.yaml", num_steps=4, eval_every=2, save_every=1))
    return folder / "out"


def recorded(prefix):
    return json.loads(prefix.with_name(f"{prefix.name}.config.json").read_text())["checkpoint"]


def test_each_tag_has_the_loss_that_was_logged_for_its_step(out):
    logged = {line["step"]: line["val/loss"] for line in metrics(out) if "val/loss" in line}
    assert sorted(logged) == [2, 4]
    for tag in store.own_tags(out):
        assert recorded(tag.prefix)["val_loss"] == logged.get(tag.step)
        assert tag.record.val_loss == logged.get(tag.step)
    assert recorded(out / "best")["val_loss"] == min(logged.values())


def test_the_loss_is_no_setting_of_the_run(out):
    """It stands in the record, apart from the snapshot that a resume compares."""
    checkpoint = read_checkpoint(out / "best")
    assert "val_loss" not in json.dumps(checkpoint.snapshot)
    config_of(checkpoint)
    tag = store.read_tag(out / "step0000003")
    host, changes, refused = store.compare(tag, config_of(checkpoint), [])
    assert not changes
    assert host.best_val_loss is not None
    assert len(refused) == 1  # the shards, of which the comparison was given none


def test_a_record_without_it_is_read(out, tmp_path):
    """As versions before wrote it, and the PyTorch trainer, which writes no record at all."""
    for path in out.glob("best*"):
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, tmp_path / path.name)
    path = tmp_path / "best.config.json"
    config = json.loads(path.read_text())
    del config["checkpoint"]["val_loss"], config["checkpoint"]["crc32"]
    path.write_text(json.dumps(config))
    assert store.read_tag(tmp_path / "best").record.val_loss is None
    del config["checkpoint"]
    path.write_text(json.dumps(config))
    assert read_checkpoint(tmp_path / "best").record is None
