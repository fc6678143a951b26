"""What other programs write is named for what it is, where a checkpoint was asked for."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from light_llm.checkpoint.layout import locate_weights
from light_llm.checkpoint.tensors import read_tensors
from light_llm.errors import UserError

NAMES = ("tok_emb.weight", "layers.0.attn.q_proj.weight", "final_norm.weight")


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as refused:
        read_tensors(locate_weights(path).weights)
    return str(refused.value)


def test_files_of_pickles_and_arrays(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    np.savez(tmp_path / "a.npz", a=np.zeros(2))
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(20))
    shutil.copy(tmp_path / "pytorch_model.bin", tmp_path / "renamed.safetensors")
    for name, words in {
        "pytorch_model.bin": "a file of torch.save, a pickle inside a zip, which is not opened",
        "renamed.safetensors": "a file of torch.save",
        "a.pt": "it is a pickle, which is not opened",
        "a.npz": "it is a file of numpy.savez",
        "a.gguf": "it is a GGUF file",
    }.items():
        assert words in refusal(tmp_path / name), name


FOLDERS = {
    "pytorch_model.bin": ("its weights are pickles (pytorch_model.bin)", "save_pretrained"),
    "pytorch_model-00001-of-00002.bin pytorch_model.bin.index.json": ("its weights are pickles",),
    "consolidated.00.pth params.json": ("holds pickles (consolidated.00.pth)", "save_file"),
    ".metadata __0_0.distcp": ("torch.distributed.checkpoint (FSDP)", "dcp_to_torch"),
    "mp_rank_00_model_states.pt latest": ("DeepSpeed", "zero_to_fp32.py"),
    "_METADATA manifest.ocdbt d/x": ("Orbax",),
    "flax_model.msgpack config.json": ("weights of Flax",),
    "model.ckpt.index checkpoint": ("weights of TensorFlow",),
    "model-00001-of-00002.safetensors": ("but no model.safetensors.index.json",),
    "w-00001-of-00002.safetensors": ("parts of weights", "without their .safetensors.index.json"),
    "other.safetensors": ("holds other.safetensors; name one of these files",),
    "notes.txt": ("holds no checkpoint",),
}


@pytest.mark.parametrize("names", FOLDERS)
def test_folders_of_other_trainers(tmp_path, names):
    for name in names.split():
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}")
    message = refusal(tmp_path / "model")
    for words in FOLDERS[names]:
        assert words in message


@pytest.mark.parametrize(
    "name, words",
    [
        ("model.{}", "begin with `model.`, as those of a model inside another one"),
        ("_fsdp_wrapped_module.{}", "FullyShardedDataParallel adds"),
        ("net.module.{}", "`module.`, which DistributedDataParallel adds"),
        ("module._orig_mod.{}", '.replace("_orig_mod.", "").replace("module.", "")'),
    ],
)
def test_keys_with_a_prefix(tmp_path, name, words):
    path = tmp_path / "w.safetensors"
    save_file({name.format(key): np.zeros(2, np.float32) for key in NAMES}, path)
    assert words in refusal(path)
    save_file({key: np.zeros(2, np.float32) for key in NAMES}, path)
    assert sorted(read_tensors(locate_weights(path).weights)) == sorted(NAMES)


def test_a_part_without_its_index(tmp_path):
    path = tmp_path / "best-00001-of-00003.safetensors"
    save_file({key: np.zeros(2, np.float32) for key in NAMES}, path)
    assert "one of several files of these weights, and best.safetensors.index" in refusal(path)
