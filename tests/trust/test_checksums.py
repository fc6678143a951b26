"""A config.json, a manifest and a tokenizer that are not as they were written are told of."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from light_jax.config import TrainingConfig
from light_llm.checkpoint.reading import PATHS, Record, read_checkpoint, seal
from light_llm.errors import UserError
from light_llm.files.checksum import of_json
from light_llm.preprocess.listing import manifests, tokenizer_beside
from light_llm.preprocess.manifest import read_manifest, tokenizer_fingerprint, write_manifest
from light_llm.preprocess.shards import Shard
from light_llm.tokenizer import train_char


@pytest.fixture
def tag(tmp_path: Path) -> Path:
    (tmp_path / "best.safetensors").write_bytes(b"")
    config = {"model": {"d_model": 32}, "train_data": "/mine", "lr": 1e-05, "steps": [1, None]}
    config |= {"dropout": 0.0, "beta": 1.0}
    write(tmp_path / "best", seal(config | {"checkpoint": Record(step=3).model_dump()}))
    return tmp_path / "best"


def write(tag: Path, config: dict[str, Any], **options: Any) -> None:
    Path(f"{tag}.config.json").write_text(json.dumps(config, **options))


def config_of(tag: Path) -> dict[str, Any]:
    return json.loads(Path(f"{tag}.config.json").read_text())


def test_a_config_holds_its_values_however_they_are_written(tag: Path):
    assert read_checkpoint(tag).step == 3
    write(tag, dict(reversed(config_of(tag).items())), indent=7)
    assert read_checkpoint(tag).step == 3
    assert '"dropout": 0.0' in Path(f"{tag}.config.json").read_text()
    write(tag, config_of(tag) | {"dropout": 0, "beta": 1, "train_data": "/other"})  # as jq writes
    assert read_checkpoint(tag).step == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["model"].update(d_model=33),
        lambda config: config["checkpoint"].update(step=2),
        lambda config: config.update(lr=1.0000000000000001e-05 * 2),
        lambda config: config.update(more=1),
        lambda config: config.pop("steps"),
    ],
)
def test_a_changed_setting_is_refused(tag: Path, change: Callable[[dict], object]):
    config = config_of(tag)
    change(config)
    write(tag, config)
    with pytest.raises(UserError, match=r"best\.config\.json: is not as it was written \(CRC-32\)"):
        read_checkpoint(tag)
    del config["checkpoint"]["crc32"]  # on purpose
    write(tag, config)
    read_checkpoint(tag)


def test_paths_may_be_changed(tag: Path):
    write(tag, config_of(tag) | {"train_data": "yours", "tokenizer_path": "t"})
    assert read_checkpoint(tag).snapshot["train_data"] == "yours"
    assert set(TrainingConfig.path_keys) == PATHS


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output of llm-preprocess, without what is in its shard."""
    tokenizer = train_char(["abc"])
    tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "train").mkdir()
    (tmp_path / "train/shard_00000.parquet").write_bytes(b"")
    shard = Shard("train/shard_00000.parquet", 1, 2, 3, 4, "00")
    known = tokenizer_fingerprint(tmp_path / "tokenizer")
    write_manifest(tmp_path, {}, {}, tokenizer, known, [shard], [], 0)
    return tmp_path


def shards(output: Path) -> list[Path]:
    return list((output / "train").glob("*"))


def test_a_damaged_manifest_is_refused_where_its_shards_are_read(output: Path):
    path = output / "manifest.json"
    (listing,) = manifests(shards(output))
    text = path.read_text()
    for old, new in {
        f'"vocab_size": {listing.vocab_size}': f'"vocab_size": {listing.vocab_size + 1}',
        '"format"': '"gormat"',
        "{": "",
    }.items():
        assert old in text
        path.write_text(text.replace(old, new, 1))
        assert read_manifest(path) is None
        with pytest.raises(UserError, match=r"manifest\.json: the manifest of the shards is damag"):
            manifests(shards(output))
    older = json.loads(text)
    del older["crc32"]
    path.write_text(json.dumps(older))
    assert len(manifests(shards(output))) == 1


def test_a_manifest_of_another_program_is_passed_over(output: Path):
    path = output / "manifest.json"
    of_another = '{"vocab_size": 50257, "bos_id": 1, "eos_id": 2, "characters": 9, "files": ["a"]}'
    for text in (
        of_another,
        '{"name": "a site"}',
        '{"audio": "a.wav"}\n{"audio": "b.wav"}\n',
        "[]",
    ):
        path.write_text(text)
        with warnings.catch_warnings(action="error"):
            assert manifests(shards(output)) == []
    for text in ("", "\0\1"):
        path.write_text(text)
        with pytest.warns(UserWarning, match=r"manifest\.json: is not JSON"):
            assert manifests(shards(output)) == []


def test_a_manifest_of_a_later_version_is_told_as_such(output: Path):
    later = json.loads((output / "manifest.json").read_text()) | {"format": 2}
    del later["crc32"]
    later["crc32"] = of_json(later)
    (output / "manifest.json").write_text(json.dumps(later))
    with pytest.raises(UserError, match=r"has manifest format 2, and this version reads 1"):
        manifests(shards(output))


def test_another_tokenizer_beside_shards_is_warned_of(output: Path):
    with warnings.catch_warnings(action="error"):
        assert tokenizer_beside(output / "train") == output / "tokenizer"
    (output / "tokenizer/more").mkdir()
    with pytest.warns(UserWarning, match="not those that llm-preprocess left there"):
        tokenizer_beside(output / "train")
    (output / "tokenizer/more").rmdir()
    train_char(["abd"]).save(output / "tokenizer")
    with pytest.warns(UserWarning, match="not those that llm-preprocess left there"):
        tokenizer_beside(output / "train")
