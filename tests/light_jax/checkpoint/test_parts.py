"""Weights in parts with an index are the same checkpoint as weights in one file."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tiny_runs import TINY, command, contents, metrics, write_config

from light_jax.checkpoint import room, store
from light_jax.checkpoint.loading import load_jax
from light_jax.config import TrainingConfig
from light_jax.training.loop import run_config
from light_llm.checkpoint import digests, load_transformer, reading
from light_llm.errors import UserError
from light_llm.models.transformer import Transformer

INDEX = "best.safetensors.index.json"


def run(folder: Path, *args: str, **changes) -> Path:
    """A run in `folder`; its checkpoint_dir."""
    write_config(folder / "c.yaml", **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_config("c.yaml", *args) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return run(tmp_path_factory.mktemp("single"), num_steps=3, save_every=3)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return run(tmp_path_factory.mktemp("parts"), num_steps=3, save_every=3, max_shard_size="40KB")


def in_parts(folder: Path, tag: str = "best") -> dict[str, np.ndarray]:
    """What safetensors itself finds in the parts."""
    paths = sorted(folder.glob(f"{tag}-*-of-*.safetensors"))
    arrays: dict[str, np.ndarray] = {}
    for path in paths:
        arrays |= load_file(path)
    return arrays


def test_parts_hold_what_one_file_holds(single, parts):
    whole, cut = load_file(single / "best.safetensors"), in_parts(parts)
    assert not (parts / "best.safetensors").exists()
    assert whole.keys() == cut.keys()
    assert all(whole[key].tobytes() == cut[key].tobytes() for key in whole)
    index = json.loads((parts / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in whole.values())
    assert list(index["weight_map"]) == list(Transformer(model()).state_dict())
    for key, name in index["weight_map"].items():
        assert key in load_file(parts / name)
    sizes = [sum(a.nbytes for a in load_file(p).values()) for p in parts.glob("best-*.saf*")]
    assert len(sizes) == 5
    assert max(sizes) <= 40_000


def model():
    return TrainingConfig(**TINY).model


def test_one_file_has_the_bytes_that_safetensors_writes(single, tmp_path):
    save_file(load_file(single / "best.safetensors"), tmp_path / "w", metadata={"format": "pt"})
    assert (tmp_path / "w").read_bytes() == (single / "best.safetensors").read_bytes()


def test_pytorch_loads_them(single, parts):
    plain = Transformer(model())
    plain.load_state_dict({key: torch.from_numpy(a) for key, a in in_parts(parts).items()})
    expected = load_transformer(single / "best").state_dict()
    names = ("best", INDEX, "best-00002-of-00005.safetensors")
    loaded = [load_transformer(parts / name) for name in names]
    for found in (plain, *loaded, load_transformer(parts / INDEX, model())):
        assert all(torch.equal(value, expected[key]) for key, value in found.state_dict().items())
    tokens = np.arange(12).reshape(1, 12)
    ours = load_jax(parts / "best")(tokens)
    np.testing.assert_array_equal(ours, load_jax(single / "best")(tokens))


def test_transformers_loads_an_export_of_them_in_parts(parts, tmp_path):
    transformers = pytest.importorskip("transformers")
    done = command("llm-convert", "hf", parts / "best", "hf", "--max-shard-size=30KB", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "hf/model.safetensors.index.json").exists()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", trust_remote_code=False
    ).eval()
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        ours = load_transformer(parts / "best")(tokens)
        torch.testing.assert_close(theirs(tokens).logits, ours, rtol=0, atol=2e-5)


@pytest.mark.parametrize("later", ["5GB", "20KB"])
def test_a_resume_equals_one_file_and_leaves_no_stale_part(single, parts, tmp_path, later):
    """In another size of parts: six steps, of which three were in parts of the first size."""
    changes = {"num_steps": 6, "save_every": 3, "keep_last_n": 1}
    ends = []
    for source, size in ((single, "5GB"), (parts, later)):
        folder = tmp_path / source.parent.name
        shutil.copytree(source, folder / "out")
        ends.append(run(folder, "auto", **changes, max_shard_size=size))
    left, right = ends
    assert metrics(left, timeless=True) == metrics(right, timeless=True)
    whole = load_file(left / "final.safetensors")
    there = in_parts(right, "final") or load_file(right / "final.safetensors")
    assert all(whole[key].tobytes() == there[key].tobytes() for key in whole)
    for tag in ("final", "step0000006"):
        recorded = reading.read_checkpoint(right / tag).record.files
        weights = {f"{tag}{name}" for name in recorded if name.endswith(".safetensors")}
        assert weights == {p.name for p in right.glob(f"{tag}*.safetensors")}
        assert (right / f"{tag}.safetensors.index.json").exists() == (later == "20KB")
    assert not list(right.glob("step0000003*"))
    assert not list(right.glob(".*.committed"))


def test_commands_take_them(single, parts):
    for name in ("best", INDEX):
        eval_, plain = (
            command("llm-eval", folder / at, "--data", TINY["val_data"], "--json", cwd=folder)
            for folder, at in ((parts, name), (single, "best"))
        )
        assert eval_.returncode == 0, eval_.stderr
        assert _loss(eval_.stdout) == _loss(plain.stdout)
    listed = command("llm-runs", "list", parts, cwd=parts)
    assert re.findall(r"^  (\S+) .* (\S+)$", listed.stdout, re.MULTILINE)[1:] == [
        ("best", "complete"),
        ("final", "complete"),
        ("step0000003", "complete"),
    ]


def _loss(text: str) -> float:
    return float(re.search(r'"loss": ([0-9.]+)', text)[1])


# ---------------------------------------------------------------------- what others may have done


def edited(change):
    def edit(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index)
        (folder / INDEX).write_text(json.dumps(index))

    return edit


def places(**changed: str):
    return edited(lambda index: index["weight_map"].update(changed))


def twice(folder: Path) -> None:
    first, second = sorted(folder.glob("best-*.safetensors"))[:2]
    key, array = next(iter(load_file(second).items()))
    save_file(load_file(first) | {key: array}, first)


EMB = "tok_emb.weight"
ATTACKS = {
    "a part that is gone": (
        lambda folder: (folder / "best-00002-of-00005.safetensors").unlink(),
        r"best-00002-of-00005\.safetensors, which is not there",
    ),
    "a path outside": (places(**{EMB: "../x"}), r"names '\.\./x'"),
    "an absolute path": (places(**{EMB: "/etc/passwd"}), r"names '/etc/passwd'"),
    "another tag's part": (
        places(**{EMB: "final-00001-of-00005.safetensors"}),
        r"names 'final-00001-of-00005\.safetensors'",
    ),
    "no name": (edited(lambda i: i["weight_map"].update({EMB: "best"})), "names 'best'"),
    "a tensor in two parts": (twice, r"is also in best-00001-of-00005"),
    "a tensor in another part": (
        places(**{EMB: "best-00005-of-00005.safetensors"}),
        r"does not say where tok_emb\.weight is",
    ),
    "a tensor that is nowhere": (places(more="best-00001-of-00005.safetensors"), "more"),
    "no text for a name": (edited(lambda i: i["weight_map"].update({EMB: [1]})), "weight_map"),
    "a wrong total": (
        edited(lambda i: i["metadata"].update(total_size=1)),
        "total_size is 1 bytes",
    ),
    "no total": (edited(lambda i: i.pop("metadata")), r"metadata\.total_size"),
    "no map": (edited(lambda i: i.update(weight_map=[])), "weight_map"),
    "a list": (lambda folder: (folder / INDEX).write_text("[]"), "weight_map"),
    "no JSON": (lambda folder: (folder / INDEX).write_text("{"), "not valid JSON"),
    "deep JSON": (lambda folder: (folder / INDEX).write_text("[" * 10**5), "nesting"),
    "no text": (lambda folder: (folder / INDEX).write_bytes(b"\xff\xfe"), "UTF-8"),
    "a part that is cut": (
        lambda folder: (folder / "best-00003-of-00005.safetensors").write_bytes(b"\0" * 99),
        r"best-00003-of-00005\.safetensors: not a whole safetensors file",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_damaged_index_is_one_message(parts, tmp_path, attack):
    """With the record of config.json beside it, and without."""
    damage, said = ATTACKS[attack]
    for path in parts.glob("best*"):
        if path.is_file():
            shutil.copy(path, tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=said):
        load_transformer(tmp_path / "best", model())
    with pytest.raises(UserError):
        load_transformer(tmp_path / "best")
    with pytest.raises(UserError):
        digests.verify(reading.read_checkpoint(tmp_path / "best"))


def test_a_command_ends_in_that_message(parts, tmp_path):
    shutil.copytree(parts, tmp_path / "out")
    (tmp_path / "out" / INDEX).write_text("{")
    done = command("llm-eval", "out/best", "--data", TINY["val_data"], cwd=tmp_path)
    assert done.returncode == 2
    assert "best.safetensors.index.json: not valid JSON" in done.stderr
    assert "Traceback" not in done.stderr


def test_auto_passes_over_a_tag_with_a_damaged_index(parts, tmp_path):
    """It takes the tag before; no index has a checksum, its parts have."""
    shutil.copytree(parts, tmp_path / "out")
    out = run(tmp_path, "auto", num_steps=4, save_every=1, max_shard_size="40KB")
    for tag in ("final", "step0000004"):
        for path in out.glob(f"{tag}.safetensors.index.json"):
            path.write_text(path.read_text().replace(EMB, "tok"))
    with pytest.warns(UserWarning, match="does not say where"):
        assert store.find("auto", out).step == 3


# ------------------------------------------------------------------------- where there is no room


def test_a_save_without_a_copy_writes_the_same_files(parts, tmp_path, monkeypatch, capsys):
    """Where memory is short, training waits; nothing else is different."""
    monkeypatch.setattr(room, "free_memory", lambda: 0)
    out = run(tmp_path, num_steps=3, save_every=3, max_shard_size="40KB")
    told = "so training waits while a checkpoint is written"
    assert capsys.readouterr().err.count(told) == 1

    def weights(folder: Path) -> dict[str, bytes]:
        return {k: v for k, v in contents(folder).items() if "safetensors" in k}

    assert weights(out) == weights(parts)
    for tag in ("best", "final", "step0000003"):
        digests.verify(reading.read_checkpoint(out / tag))
    again = run(tmp_path, "auto", num_steps=6, save_every=3, max_shard_size="40KB")
    whole = run(tmp_path / "whole", num_steps=6, save_every=3, max_shard_size="40KB")
    assert metrics(again, timeless=True) == metrics(whole, timeless=True)


SHARDED = """
import json, sys, tracemalloc
from pathlib import Path

import jax, numpy as np
from tiny_runs import TINY, merged

from light_jax.checkpoint import room
from light_jax.checkpoint.saver import Saver
from light_jax.checkpoint.state import _stored, named_arrays
from light_jax.config import TrainingConfig
from light_jax.parallel.sharding import make_mesh, state_shardings
from light_jax.state import HostState
from light_jax.training.step import init_params, init_state

changes = {"model": {"d_model": 256, "vocab_size": 4096}, "mesh": {"fsdp": 8, "data": 1}}
for free, folder in ((1 << 40, "copied"), (0, "in_place")):
    cfg = TrainingConfig(**merged(TINY, {**changes, "checkpoint_dir": folder}))
    room.free_memory = lambda: free
    make = lambda: init_state(cfg, init_params(cfg))
    shardings = state_shardings(jax.eval_shape(make), cfg.model, make_mesh(cfg.mesh))
    state = jax.block_until_ready(jax.jit(make, out_shardings=shardings)())
    moments = {k: v for k, v in named_arrays(state).items() if v.ndim == 2}
    assert len(jax.devices()) == 8 and len(moments) == 2 * (1 + 7 * 2)
    Path(folder).mkdir()
    saver = Saver(cfg, None)
    live = {id(array) for array in jax.live_arrays()}
    whole = [v.shape for v in moments.values()]
    saver.save(["best"], state, HostState("run", []))
    made = [a for a in jax.live_arrays() if id(a) not in live and a.shape in whole]
    assert all(not a.is_fully_replicated for a in made)
    saver.wait()
    from tensorstore import KvStore
    base = {"driver": "file", "path": f"{Path(folder).resolve()}/best.state/state/"}
    store = KvStore.open({"driver": "ocdbt", "base": base}).result()
    for name, array in moments.items():
        about = json.loads(store.read(f"{name}/zarr.json").result().value)
        assert tuple(about["shape"]) == array.shape
        chunk = tuple(about["chunk_grid"]["configuration"]["chunk_shape"])
        assert chunk == array.sharding.shard_shape(array.shape) != array.shape, name
print("each device's part is written as it is")
"""


def test_the_optimizers_state_is_never_gathered(tmp_path):
    """On eight devices, copies and stored chunks of it are divided as it is."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        cwd=tmp_path,
        env={**os.environ, **flags, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    copied, in_place = (contents(tmp_path / name) for name in ("copied", "in_place"))
    assert copied["best.safetensors"] == in_place["best.safetensors"]
