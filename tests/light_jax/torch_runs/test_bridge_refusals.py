"""What llm-convert state refuses: one message, nothing executed, nothing changed, nothing written
elsewhere."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_runs import TINY, command, contents, write_config

from light_jax.config import load_config
from light_jax.torch_runs import file as torch_file
from light_jax.torch_runs import tag as torch_tag
from light_jax.torch_runs.bridge import export_tag, import_tag
from light_jax.training.loop import run_config
from light_llm.errors import UserError

torch = pytest.importorskip("torch")
from torch_trainer import foreign_tag  # noqa: E402

ROOT = Path(__file__).parents[3]
TAG = "step0000002"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    foreign_tag(folder)
    return folder


@pytest.fixture
def tag(made, tmp_path, monkeypatch) -> Path:
    """The prefix of a foreign tag, whole, with an empty folder beside its own."""
    shutil.copytree(made, tmp_path / "in" / "run")
    (tmp_path / "outside").mkdir()
    monkeypatch.chdir(tmp_path)
    return Path("in/run") / TAG


def edit_state(tag: Path, change) -> None:
    path = f"{tag}.state.pt"
    state = torch.load(path, weights_only=True)
    torch.save(change(state) or state, path)


def edit_weights(tag: Path, change) -> None:
    path = f"{tag}.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def edit_config(tag: Path, **changes: Any) -> None:
    path = Path(f"{tag}.config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(path: str) -> None:
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])


def flip(path: str) -> None:
    data = bytearray(Path(path).read_bytes())
    data[len(data) // 2] ^= 4
    Path(path).write_bytes(data)


class Payload:
    """A pickle that makes a file when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("outside/executed",)


def plain_pickle(path: str) -> None:
    Path(path).write_bytes(pickle.dumps(Payload()))


def torch_pickle(path: str) -> None:
    torch.save({"step": 2, "optimizer": Payload()}, path)


def old_torch_pickle(path: str) -> None:
    torch.save(Payload(), path, _use_new_zipfile_serialization=False)


def _key(key: str, value: Any):
    return lambda tag: edit_state(tag, lambda state: state.update({key: value}))


def on(ending: str, change):
    return lambda tag: change(f"{tag}{ending}")


EXPERIMENT = {"model": {**TINY["model"], "d_model": 64}}
REFUSED = {
    "no state": (on(".state.pt", os.remove), r"\.state\.pt: there is no optimizer state of a PyT"),
    "no weights": (on(".safetensors", os.remove), r"there is no checkpoint 'step0000002'"),
    "no config": (on(".config.json", os.remove), "the weights have no config beside them"),
    "config of another model": (lambda tag: edit_config(tag, **EXPERIMENT), "exp_avg has shape"),
    "config of another optimizer": (
        lambda tag: edit_config(tag, optimizer={"type": "sgd"}),
        "has no momentum: it is not from sgd",
    ),
    "config with an unknown key": (lambda tag: edit_config(tag, lr=1), "lr is not a key here"),
    "config that is not JSON": (on(".config.json", cut), "not a readable config"),
    "shards that are gone": (
        lambda tag: edit_config(tag, train_data="gone"),
        "train_data='gone' does not exist",
    ),
    "shards of another run": (
        lambda tag: edit_config(tag, train_data=TINY["val_data"], seq_len=3, batch_size=400),
        r"step 2 was in epoch 0, and with the shards of train_data=.*, it is in epoch \d",
    ),
    "state cut short": (on(".state.pt", cut), "not a whole file of torch.save"),
    "state with a flipped bit": (on(".state.pt", flip), r"is damaged \(CRC-32\)"),
    "state that is a plain pickle": (on(".state.pt", plain_pickle), "not a whole file of torch"),
    "state that runs code": (on(".state.pt", torch_pickle), r"not plain data .* \(it asks for "),
    "state of old torch": (on(".state.pt", old_torch_pickle), "not a whole file of torch.save"),
    "state that is a list": (lambda tag: edit_state(tag, lambda _: [1]), "holds a list where"),
    "state without a key": (
        lambda tag: edit_state(tag, lambda state: {"step": state["step"]}),
        "has no epoch, optimizer, scheduler, scaler, best_val_loss",
    ),
    "state of another step": (
        _key("step", 3),
        "belongs to step 3; put back the one of step0000002",
    ),
    "step that is none": (_key("step", -1), "step=-1 is not a whole number"),
    "best loss that is none": (
        _key("best_val_loss", float("nan")),
        "best_val_loss=nan is not a loss",
    ),
    "epoch of other shards": (_key("epoch", 1), "step 2 was in epoch 1, and with the shards"),
    "loss scale in float32": (_key("scaler", {"scale": 2.0}), "scaler has a loss scale; dtype"),
    "no loss scale in float16": (
        lambda tag: edit_config(tag, dtype="float16"),
        "no scale and growth tracker, which dtype='float16' needs",
    ),
    "no optimizer": (_key("optimizer", {}), "optimizer is not a torch.optim state dict"),
    "more updates than steps": (
        lambda tag: edit_state(
            tag, lambda s: [f["step"].fill_(9) for f in s["optimizer"]["state"].values()] and s
        ),
        "the optimizer made 9 updates by step 2",
    ),
    "weights that are a pickle": (on(".safetensors", plain_pickle), "not a whole safetensors file"),
    "weights that are torch's": (on(".safetensors", torch_pickle), "not a whole safetensors file"),
    "weights cut short": (on(".safetensors", cut), "not a whole safetensors file"),
    "weights without a key": (
        lambda tag: edit_weights(tag, lambda w: w.pop("final_norm.weight")),
        r"missing final_norm.weight \[32\]",
    ),
    "weights with another head": (
        lambda tag: edit_weights(
            tag, lambda w: w.update({"lm_head.weight": w["tok_emb.weight"] + 1})
        ),
        "lm_head.weight differs from tok_emb.weight",
    ),
}


@pytest.mark.parametrize("change, message", REFUSED.values(), ids=REFUSED)
def test_a_foreign_tag_is_refused_as_it_is(change, message, tag, tmp_path):
    change(tag)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=message):
        import_tag(tag)
    assert contents(tmp_path) == before


JUNK = [None, -1, float("nan"), 1e300, "x", [1], np.ones((2, 2), "f4")]


def places(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every node of plain data; of many parameters, to the first one's."""
    if at:
        yield at
    if isinstance(node, dict | list):
        for key in node if isinstance(node, dict) else range(len(node)):
            if at[-1:] not in [("state",), ("params",)] or key == 0:
                yield from places(node[key], (*at, key))


def test_any_state_is_taken_or_refused(tmp_path):
    """Each value of a .state.pt replaced by junk: a UserError, or nothing that matters."""
    scaler = torch.amp.GradScaler("cpu").state_dict()
    prefix = foreign_tag(tmp_path, dtype="float16", state={"scaler": scaler})
    cfg = load_config(f"{prefix}.config.json")
    whole = torch_file.read(Path(f"{prefix}.state.pt"))
    refused = taken = 0
    for *parents, last in places(whole):
        for junk in JUNK:
            data = copy.deepcopy(whole)
            node = data
            for key in parents:
                node = node[key]
            node[last] = junk
            try:
                torch_tag.state_from_torch(data, cfg, 1000, "x")
                taken += 1
            except UserError:
                refused += 1
    assert refused > taken > 0


def test_no_pickle_runs_by_any_command(tag, tmp_path):
    """The command refuses it, in one message; training never opens it."""
    torch_pickle(f"{tag}.state.pt")
    done = command("llm-convert", "state", "from-torch", tag, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"llm-convert: {tag}.state.pt: not plain data of PyTorch, so")
    assert len(done.stderr.splitlines()) == 1
    write_config(tmp_path / "c.yaml", checkpoint_dir="in/run")
    with pytest.raises(UserError, match="holds weights but no state of this trainer"):
        run_config("c.yaml", str(tag))
    assert contents(tmp_path / "outside") == {}


def test_pickles_are_opened_in_one_place():
    files = [
        path
        for name in ("light_llm", "light_jax", "conversion")
        for path in (ROOT / name).rglob("*.py")
    ]
    loads = {
        str(path.relative_to(ROOT)): re.findall(
            r"\b(?:torch|pickle|np|numpy)\.load\(.*", path.read_text()
        )
        for path in files
    }
    # not of files: what a process and its own workers say
    assert loads.pop("light_llm/preprocess/encode.py")
    assert loads.pop("light_llm/preprocess/trainer.py")
    numpy = loads.pop("light_jax/training/replay.py")
    assert all("allow_pickle=False" in call for call in numpy)
    pickles = "light_jax/torch_runs/file.py"
    assert {name: len(found) for name, found in loads.items() if found} == {pickles: 1}
    assert "weights_only=True" in loads[pickles][0]


OUTSIDE = {
    "in/run/../../outside/tag": "there is no checkpoint 'tag'",
    "in/run/..": "there is no checkpoint '..'",
    "in/run/.": "it is a folder; add one of its tags: step0000002",
    "/": "there is no checkpoint",
    "": "there is no checkpoint",
    "gone/step0000002": "there is no folder gone",
    "in/run/step*": "there is no checkpoint",
}


@pytest.mark.parametrize("prefix, message", OUTSIDE.items())
@pytest.mark.parametrize("convert", [import_tag, export_tag])
def test_a_prefix_leads_nowhere_else(convert, prefix, message, tag, tmp_path):
    before = contents(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        convert(prefix)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", [f"{TAG}.state", f".{TAG}.writing", f".{TAG}.committed", ".lock"])
def test_links_in_the_way_are_refused(name, tag, tmp_path):
    target = tmp_path / "outside" / "target"
    target.write_text("mine") if name == ".lock" else target.mkdir()
    (tag.parent / name).symlink_to(target)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"is a link to .*target"):
        import_tag(tag)
    assert contents(tmp_path) == before


def test_an_export_follows_no_link(tag, tmp_path):
    import_tag(tag)
    target = tmp_path / "outside" / "target"
    target.write_text("mine")
    for name in (f".{TAG}.state.pt.tmp", f"{TAG}.state.pt"):
        (tag.parent / name).unlink(missing_ok=True)
        (tag.parent / name).symlink_to(target)
    export_tag(tag)
    assert target.read_text() == "mine"
    assert not Path(f"{tag}.state.pt").is_symlink()
    assert not (tag.parent / f".{TAG}.state.pt.tmp").exists()


def test_patterns_in_a_name_are_refused(tag, tmp_path):
    (tmp_path / "in").rename(tmp_path / "in[1]")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"has one of \[ \] \* \? in it"):
        import_tag(tmp_path / "in[1]/run" / TAG)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "convert, limit", [(import_tag, 20_000), (import_tag, 200_000), (export_tag, 20_000)]
)
def test_a_full_disk_leaves_the_tag_as_it_was(convert, limit, tag, tmp_path):
    """The weights are 155 kB, the state is twice that."""
    if convert is export_tag:
        import_tag(tag)
    before = contents(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(UserError, match=r"cannot be written .*; free some space"):
            convert(tag)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    after = contents(tmp_path)
    assert {name: value for name, value in after.items() if ".writing" not in name} == before
    convert(tag)
    assert not list(tag.parent.glob(".*.writing"))


def test_members_of_two_steps_are_refused(tag, tmp_path):
    """After an import the weights are known by their digest, and the state by its step."""
    best = tag.with_name("best")
    for path in tag.parent.glob(f"{TAG}.*"):
        path.rename(path.with_name(path.name.replace(TAG, "best")))
    import_tag(best)
    import_tag(best)  # twice is once
    edit_state(best, lambda state: state.update(step=5))
    with pytest.raises(UserError, match="belongs to step 5, and the weights beside it to step 2"):
        import_tag(best)
    edit_weights(best, lambda weights: weights.update({"final_norm.weight": np.ones(32, "f4")}))
    with pytest.raises(UserError, match=r"were written; use another tag\n.*take the key 'check"):
        import_tag(best)


def test_a_damaged_tag_is_not_exported(tag, tmp_path):
    import_tag(tag)
    os.remove(f"{tag}.state.pt")
    files = [path for path in Path(f"{tag}.state").rglob("*") if path.is_file()]
    flip(str(max(files, key=lambda path: path.stat().st_size)))
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"its bytes are not those written \(CRC-32\)"):
        export_tag(tag)
    assert contents(tmp_path) == before
    with pytest.raises(UserError, match=r"there is no checkpoint 'nothing'.* has step0000002"):
        export_tag(tag.with_name("nothing"))


def test_a_folder_that_a_run_writes_is_left_to_it(tag, tmp_path):
    import fcntl

    with (tag.parent / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        before = contents(tmp_path)
        with pytest.raises(UserError, match="is being written by another run"):
            import_tag(tag)
        assert contents(tmp_path) == before
