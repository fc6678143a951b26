"""Weights, folders and machines as people have them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from foreign_models import SIZES
from safetensors.numpy import save_file
from tiny_runs import BIN, TINY, merged, metrics, write_config

from conversion.families import hf_key, our_config
from conversion.import_hf import import_model
from conversion.mapping import table
from conversion.weights import check_keys
from light_jax.checkpoint.place import check_writable
from light_jax.config import TrainingConfig
from light_jax.data.footer import read_footer
from light_llm.errors import UserError
from light_llm.models.transformer.config import TransformerConfig
from light_llm.tokenizer import load_tokenizer

LLAMA = SIZES | {"model_type": "llama", "rope_theta": 10000.0}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def weights_of(config: dict) -> dict[str, np.ndarray]:
    cfg = TransformerConfig.model_validate(our_config(config, "here"))
    return {hf_key(entry.key): np.ones(entry.shape, np.float32) for entry in table(cfg)}


@pytest.fixture
def model(tmp_path, monkeypatch):
    """model(weights, before=bytes before the config, **changes of it) -> the lines of an import."""
    monkeypatch.chdir(tmp_path)

    def read(weights: dict[str, np.ndarray], before: bytes = b"", **changes) -> list[str]:
        Path("m").mkdir()
        Path("m/config.json").write_bytes(before + json.dumps(LLAMA | changes).encode())
        save_file(weights, "m/model.safetensors")
        return import_model("m", "out")

    yield read
    assert {path.name for path in tmp_path.iterdir()} <= {"m", "out.safetensors", "out.config.json"}


WEIGHTS = weights_of(LLAMA)
HEADLESS = {key: value for key, value in WEIGHTS.items() if key != HEAD}
OTHER_CLASSES = {
    "AutoModel": (
        {key.removeprefix("model."): value for key, value in HEADLESS.items()},
        r"lack the `model.` before them, .*save it as AutoModelForCausalLM",
    ),
    "PeftModel": (
        {f"base_model.model.{key}": value for key, value in WEIGHTS.items()},
        r"begin with `base_model.model.`, .*merge it with peft \(merge_and_unload\)",
    ),
    "a model with pictures": (
        {f"language_model.{key}": value for key, value in WEIGHTS.items()},
        r"begin with `language_model.`, .* inside another one; save it as AutoModelForCausalLM",
    ),
    "a classifier": (
        HEADLESS | {"score.weight": np.ones((2, SIZES["hidden_size"]), np.float32)},
        r"has score.weight, the head of a model for another task",
    ),
}


@pytest.mark.parametrize("name", OTHER_CLASSES)
def test_weights_of_another_class_are_told_as_such(model, name):
    """Not as a list of 40 keys that are missing and 40 that are unexpected."""
    weights, message = OTHER_CLASSES[name]
    with pytest.raises(UserError, match=message) as refused:
        model(weights)
    assert "\n" not in str(refused.value)


def test_tokens_that_were_added_without_the_config_are_told(model):
    rows = np.ones((SIZES["vocab_size"] + 4, SIZES["hidden_size"]), np.float32)
    with pytest.raises(UserError, match=r"trained with, where vocab_size is 135:\n  model.emb"):
        model(WEIGHTS | {EMBEDDING: rows, HEAD: rows})


def test_a_vocabulary_is_not_blamed_for_what_else_differs():
    cfg = TransformerConfig.model_validate(our_config(LLAMA, "here"))
    shapes = {entry.key: entry.shape for entry in table(cfg)}
    shapes |= {"tok_emb.weight": (9, 48), "lm_head.weight": (9, 48), "final_norm.weight": (47,)}
    with pytest.raises(UserError, match="they were trained with:\n"):
        check_keys(shapes, cfg, "here")
    shapes |= {"lm_head.weight": (8, 48), "final_norm.weight": (48,)}
    with pytest.raises(UserError, match="they were trained with:\n"):
        check_keys(shapes, cfg, "here")


def test_a_byte_order_mark_in_a_config_is_no_fault(model):
    assert model(WEIGHTS, b"\xef\xbb\xbf")[0] == "out.safetensors: 21 tensors, F32"


def test_keys_that_are_null_have_their_defaults(model):
    """As configs of old versions, and of new ones, have them."""
    same = {"num_key_value_heads": None, "head_dim": None, "rope_scaling": None}
    weights = weights_of(LLAMA | {"num_key_value_heads": SIZES["num_attention_heads"]})
    lines = "\n".join(model(weights, **same, attention_bias=None, rope_theta=None))
    assert "variant: mha" in lines
    assert "rope" not in lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "git lfs pull"),
        ('\n<?xml version="1.0"?><Error><Code>BlobNotFound</Code></Error>', "fetch it again"),
    ],
)
def test_what_came_in_the_place_of_a_file_is_told(tmp_path, content, message):
    """A clone without Git LFS, and a download that failed without a word."""
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"config.json: not valid JSON: it is .*{message}"):
        import_model(str(tmp_path), str(tmp_path / "out"))
    with pytest.raises(UserError, match=f"tokenizer.json: is not a tokenizer .*{message}"):
        load_tokenizer(tmp_path)


def test_a_pointer_in_the_place_of_a_shard_is_told(tmp_path):
    (tmp_path / "a.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d")
    with pytest.raises(UserError, match=r"a\.parquet: is a pointer of Git LFS; .*git lfs pull"):
        read_footer(str(tmp_path / "a.parquet"))


def test_a_link_to_nothing_is_told_with_where_it_leads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out").symlink_to("/nonexistent/disk")
    cfg = TrainingConfig.model_validate(merged(TINY, {"checkpoint_dir": "out"}))
    with pytest.raises(UserError, match="out is a link to /nonexistent/disk, which is not there"):
        check_writable(cfg, None)


def apple_double(folder: Path) -> None:
    """What macOS writes beside each file on a disk that is not its own."""
    for path in [*folder.rglob("*")]:
        if path.is_file():
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        (path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")


def test_a_container_with_nothing_but_the_program_is_enough(tmp_path):
    """No home, no name of the user, no place for caches or temporary files, no standard streams;
    and the run goes on from a copy that macOS made."""
    config = write_config(tmp_path / "c.yaml", num_steps=2, save_every=1, eval_every=2)
    names = {"HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "TMPDIR"}
    env = {key: value for key, value in os.environ.items() if key not in names}
    env |= {"TMPDIR": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent"}
    nobody = ["unshare", "--user", "--map-user=12345"]
    if subprocess.run([*nobody, "true"], capture_output=True).returncode:
        nobody = []  # this machine lets nobody be nobody

    def train(*args: str) -> int:
        line = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *nobody, str(BIN / "llm-train"), *args]
        return subprocess.run(line, cwd=tmp_path, env=env).returncode

    assert train(str(config)) == 0
    assert (tmp_path / "out/final.safetensors").is_file()
    apple_double(tmp_path / "out")
    longer = write_config(tmp_path / "c.yaml", num_steps=3, save_every=1, eval_every=3)
    assert train(str(longer), "--resume", "auto") == 0
    assert [line["step"] for line in metrics(tmp_path / "out") if "train/loss" in line] == [1, 2, 3]
