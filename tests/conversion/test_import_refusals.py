"""What `llm-convert from-hf` refuses: words, exit code 2, nothing written. And what it tells."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import time

import ml_dtypes
import numpy as np
import pytest
from foreign_models import SIZES
from safetensors.numpy import load_file, save_file
from tiny_runs import BIN, command, contents

from conversion.families import hf_key, our_config
from conversion.mapping import table
from light_llm.checkpoint.reading import read_checkpoint
from light_llm.models.transformer import TransformerConfig

LLAMA = SIZES | {"model_type": "llama", "rope_theta": 10000.0}


def tensors(config):
    """Random weights under Hugging Face's keys."""
    draw = np.random.default_rng(1)
    cfg = TransformerConfig.model_validate(our_config(config, "here"))
    return {
        hf_key(entry.key): draw.normal(size=entry.shape).astype(np.float32) for entry in table(cfg)
    }


def write_model(folder, config=LLAMA, weights=None):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    weights = tensors(config) if weights is None else weights
    save_file(weights, folder / "model.safetensors")
    return weights


def changed_config(**changes):
    def change(folder):
        config = {key: value for key, value in (LLAMA | changes).items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(config))

    return change


def changed_weights(alter):
    def change(folder):
        weights = load_file(folder / "model.safetensors")
        alter(weights)
        save_file(weights, folder / "model.safetensors")

    return change


def sharded(places=None, index=True):
    """Two files; `places` changes the weight_map."""

    def change(folder):
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(weights)
        parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
        for name, keys in parts.items():
            save_file({key: weights[key] for key in keys}, folder / name)
        where = {key: name for name, keys in parts.items() for key in keys} | (places or {})
        if index:
            text = json.dumps({"weight_map": where})
            (folder / "model.safetensors.index.json").write_text(text)

    return change


def as_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def misfit(weights):
    del weights["model.norm.weight"], weights["model.layers.1.mlp.up_proj.weight"]
    weights["model.layers.0.self_attn.k_proj.weight"] = np.zeros((48, 24), np.float32)
    weights["model.layers.0.extra.weight"] = np.zeros(3, np.float32)


def twice(folder):
    sharded()(folder)
    weights = load_file(folder / "model-1.safetensors")
    weights |= {"module.lm_head.weight": weights["lm_head.weight"]}
    save_file(weights, folder / "model-1.safetensors")


BAD = {
    "pickle": (as_pickle, ["pytorch_model.bin", "a pickle can run code", "save_pretrained"]),
    "no index": (sharded(index=False), ["model-1.safetensors", "no model.safetensors.index.json"]),
    "a missing file": (sharded({"lm_head.weight": "m9.safetensors"}), ["m9.safetensors", "fetch"]),
    "a file elsewhere": (sharded({"lm_head.weight": "../w.safetensors"}), ["weight_map"]),
    "a tensor astray": (
        sharded({"lm_head.weight": "model-2.safetensors"}),
        ["missing lm_head.weight in model-2.safetensors"],
    ),
    "twice": (twice, ["module.lm_head.weight is also in"]),
    "cut": (cut, ["not a whole safetensors file"]),
    "no config": (lambda folder: (folder / "config.json").unlink(), ["config.json", "copy the"]),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), ["not valid JSON"]),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ["holds no weights"]),
    "an adapter": (
        lambda folder: (folder / "model.safetensors").rename(folder / "adapter_model.safetensors"),
        ["adapter_model.safetensors", "merge_and_unload"],
    ),
    "another family": (changed_config(model_type="gpt2"), ["model_type='gpt2'", "llama, mistral"]),
    "what we lack": (
        changed_config(
            hidden_act="relu", quantization_config={}, rope_scaling={"rope_type": "yarn"}
        ),
        ["hidden_act='relu'", "quantized", "'yarn'"],
    ),
    "nonsense": (
        changed_config(num_attention_heads="4", hidden_size=0, rope_scaling=[], vocab_size=...),
        ["num_attention_heads='4'", "hidden_size=0", "rope_scaling=[]", "vocab_size must be set"],
    ),
    "heads": (changed_config(num_key_value_heads=3), ["num_kv_heads=3 does not divide"]),
    "misfit": (
        changed_weights(misfit),
        [
            "missing model.norm.weight [48]",
            "missing model.layers.1.mlp.up_proj.weight [80, 48]",
            "unexpected model.layers.0.extra.weight [3]",
            "k_proj.weight has shape [48, 24], the config says [24, 48]",
        ],
    ),
    "integers": (
        changed_weights(lambda w: w.update({"lm_head.weight": np.zeros((131, 48), np.int8)})),
        ["lm_head.weight is I8"],
    ),
    "a head that is not tied": (
        changed_config(tie_word_embeddings=True),
        ["lm_head.weight differs from model.embed_tokens.weight", "set that to false"],
    ),
    "no head": (
        changed_weights(lambda w: w.pop("lm_head.weight")),
        ["no lm_head.weight", "set tie_word_embeddings to true"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_model_is_refused(case, tmp_path):
    change, words = BAD[case]
    write_model(tmp_path / "m")
    change(tmp_path / "m")
    refused(tmp_path, words, "m", "new/out")


def refused(folder, words, *args, **env):
    before = contents(folder)
    done = command("llm-convert", "from-hf", *args, cwd=folder, env=env)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("llm-convert: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert done.stdout == ""
    assert contents(folder) == before


def test_a_source_or_a_target_that_cannot_be_is_refused(tmp_path):
    write_model(tmp_path / "m")
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    words = ["no such folder here", "hub cannot be reached", "hf auth login"]
    refused(tmp_path, words, "some-org/some-model", "out", **offline)
    refused(tmp_path, ["m/none: there is no such folder"], "m/none", "out")
    refused(tmp_path, ["is not a folder"], "m/model.safetensors", "out")
    refused(tmp_path, ["m: is a folder; name files in it"], "m", "m")
    refused(tmp_path, ["m/model.safetensors: is there, and no earlier import"], "m", "m/model")
    (tmp_path / "other.tokenizer").mkdir()
    refused(tmp_path, ["other.tokenizer: is there"], "m", "other")
    save_file({"w": np.zeros(3)}, tmp_path / "best.safetensors")
    refused(tmp_path, ["best.safetensors: is there"], "m", "best")


def test_an_earlier_import_is_replaced_and_a_killed_one_cleared(tmp_path):
    write_model(tmp_path / "m")
    first = write_model(tmp_path / "m2", LLAMA | {"num_hidden_layers": 1})
    (tmp_path / ".out.importing/deep").mkdir(parents=True)
    for source in ("m", "m2"):
        done = command("llm-convert", "from-hf", source, "out", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert len(load_file(tmp_path / "out.safetensors")) == len(first)
    assert read_checkpoint(tmp_path / "out").snapshot["model"]["num_layers"] == 1
    assert sorted(path.name for path in tmp_path.glob("*out*")) == [
        "out.config.json",
        "out.safetensors",
    ]


def test_of_two_imports_at_once_one_is_refused(tmp_path):
    write_model(tmp_path / "m")
    (tmp_path / ".out.importing").mkdir()
    (tmp_path / ".out.importing/of the other").touch()
    held = os.open(tmp_path / ".out.importing", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    before = contents(tmp_path)
    done = command("llm-convert", "from-hf", "m", "out", cwd=tmp_path)
    os.close(held)
    assert done.returncode == 2
    assert done.stderr == "llm-convert: out: another llm-convert writes there; let it end first\n"
    assert contents(tmp_path) == before


def test_what_a_wrapper_or_an_old_version_added_is_taken_off_and_told(tmp_path):
    config = LLAMA | {"tie_word_embeddings": True}
    weights = tensors(config)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(6, np.float32)
    wrapped = {f"module._orig_mod.{key}": value for key, value in weights.items()}
    write_model(tmp_path / "m", config, wrapped)
    done = command("llm-convert", "from-hf", "m", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in (
        "`_orig_mod.`, which torch.compile adds",
        "`module.`, which DistributedDataParallel adds",
        "1 rotary_emb.inv_freq left out",
        "lm_head.weight left out",
        "has no tokenizer",
        "vocab_size: 131",
    ):
        assert word in done.stdout
    ours = load_file(tmp_path / "out.safetensors")
    assert ours["layers.1.attn.out_proj.weight"].tobytes() == (
        weights["model.layers.1.self_attn.o_proj.weight"].tobytes()
    )
    assert "lm_head.weight" not in ours


def test_types_may_differ_from_tensor_to_tensor(tmp_path):
    types = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
    weights = {key: v.astype(types[i % 4]) for i, (key, v) in enumerate(tensors(LLAMA).items())}
    write_model(tmp_path / "m", LLAMA, weights)
    done = command("llm-convert", "from-hf", "m", "out", cwd=tmp_path)
    assert "BF16, F16, F32, F64" in done.stdout
    ours = load_file(tmp_path / "out.safetensors")
    assert {hf_key(key): (value.dtype, value.tobytes()) for key, value in ours.items()} == {
        key: (value.dtype, value.tobytes()) for key, value in weights.items()
    }


def large_model(folder):
    """A model of 200 MB, of zeros that take no room on the disk."""
    config = LLAMA | {"vocab_size": 500_000, "tie_word_embeddings": True}
    write_model(folder, config, {})
    cfg = TransformerConfig.model_validate(our_config(config, "here"))
    header, end = {}, 0
    for entry in table(cfg):
        begin, end = end, end + 4 * int(np.prod(entry.shape))
        header[hf_key(entry.key)] = {
            "dtype": "F32", "shape": entry.shape, "data_offsets": [begin, end]
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def test_a_signal_or_a_full_disk_leaves_nothing(tmp_path):
    large_model(tmp_path / "m")
    names = sorted(path.name for path in tmp_path.rglob("*"))
    run = subprocess.Popen([BIN / "llm-convert", "from-hf", "m", "out"], cwd=tmp_path)
    while not (tmp_path / ".out.importing/.safetensors").exists():
        assert run.poll() is None
        time.sleep(0.001)
    run.send_signal(signal.SIGTERM)
    assert run.wait() == 128 + signal.SIGTERM
    assert sorted(path.name for path in tmp_path.rglob("*")) == names

    full = subprocess.run(
        ["sh", "-c", 'ulimit -f 2048 && exec "$0" from-hf m out', BIN / "llm-convert"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert full.returncode == 2
    assert "llm-convert: out: File too large" in full.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == names
    shutil.rmtree(tmp_path / "m")
