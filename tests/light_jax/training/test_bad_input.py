"""Bad input ends with exit code 2, one message, no traceback, and nothing written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from tiny_runs import REFERENCE, TINY, command, metrics, write_config

from light_jax.data import TokenStream
from light_jax.training.loop import run_config
from light_jax.training.replay import replay
from light_llm.errors import NonFinite, UserError


def shard(folder, name="s.parquet", column="tokens", ids=(1, 2, 3) * 40):
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: [list(ids)]}), folder / name)


def test_the_command_says_it_in_one_message(tmp_path):
    (tmp_path / "empty").mkdir()
    config = write_config(tmp_path / "c.yaml", train_data="empty")
    before = sorted(tmp_path.rglob("*"))
    done = command("llm-train", config, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("llm-train: ")
    assert "train_data" in done.stderr
    assert "empty" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before
    missing = command("llm-train", "none.yaml", cwd=tmp_path)
    assert missing.returncode == 2
    assert missing.stderr.startswith("llm-train: none.yaml: there is no such config file")
    for args in [[], ["c.yaml", "--lr", "3"], ["c.yaml", "--resume"]]:
        done = command("llm-train", *args, cwd=tmp_path)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def bad_data(tmp_path):
    shard(tmp_path / "column", column="ids")
    shard(tmp_path / "ids", ids=[1, 2, 131] * 40)
    shard(tmp_path / "negative", ids=[1, -2, 3] * 40)
    shard(tmp_path / "short", ids=[1, 2, 3])
    shard(tmp_path / "floats", ids=[1.5, 2.5])
    shard(tmp_path / "strings", ids=["a", "b"])
    for name in ("zero", "truncated", "footer", "length"):
        shard(tmp_path / name)
    whole = (tmp_path / "zero/s.parquet").read_bytes()
    (tmp_path / "zero/s.parquet").write_bytes(b"")
    (tmp_path / "truncated/s.parquet").write_bytes(whole[:-9])
    (tmp_path / "footer/s.parquet").write_bytes(whole[:-99] + b"\xff" * 91 + whole[-8:])
    table = pa.table({"length": [2, 2], "tokens": [[1, 2] * 40, [3]]})
    pq.write_table(table, tmp_path / "length/s.parquet")


BAD = {
    "no shards": ({"train_data": "nothing-*"}, "train_data"),
    "wrong column": ({"train_data": "column"}, "ids"),
    "token id": ({"train_data": "ids"}, "131"),
    "negative id": ({"train_data": "negative"}, "-2"),
    "fewer tokens than a window": ({"train_data": "short"}, "seq_len"),
    "floats": ({"train_data": "floats"}, "tokens"),
    "strings": ({"train_data": "strings"}, "strings/s.parquet: column 'tokens' is list"),
    "zero bytes": ({"train_data": "zero"}, "zero/s.parquet: the shard is empty"),
    "truncated": ({"train_data": "truncated"}, "truncated/s.parquet: the shard is truncated"),
    "footer": ({"train_data": "footer"}, "footer/s.parquet: the footer is corrupt"),
    "length": ({"train_data": "length"}, "length/s.parquet: row 0 (the first is 0) has length=2"),
    "val data": ({"val_data": "column"}, "ids"),
    "init_from nothing": ({"init_from": "nothing.safetensors"}, "nothing"),
    "init_from text": ({"init_from": "c.safetensors"}, "safetensors"),
    "checkpoint_dir is a file": ({"checkpoint_dir": "c.yaml/x"}, "is not a folder"),
    "a pattern's letters": ({"checkpoint_dir": "out[1]"}, "has one of [ ] * ? in it"),
    "resume": ({}, "there is no checkpoint 'x'"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_before_anything_is_written(tmp_path, monkeypatch, case):
    changes, message = BAD[case]
    bad_data(tmp_path)
    (tmp_path / "c.safetensors").write_text("not one")
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "c.yaml", **changes)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as refusal:
        run_config("c.yaml", "out/x" if case == "resume" else None)
    assert message in str(refusal.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "prefix", ["", ".", "/", "..", "../..", "out/../../x", "/etc/passwd", "out/\0", "x" * 300]
)
def test_a_prefix_that_is_none_is_refused(tmp_path, monkeypatch, prefix):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "c.yaml")
    with pytest.raises(UserError, match="there is no checkpoint"):
        run_config("c.yaml", prefix)
    assert list(tmp_path.iterdir()) == [tmp_path / "c.yaml"]


def test_weights_that_do_not_fit_list_every_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = load_file(REFERENCE / "training/adamw-cosine/init.safetensors")
    weights["extra"] = np.zeros(3, np.float32)
    del weights["final_norm.weight"]
    save_file(weights, "w.safetensors")
    model = {"d_model": 48, "max_seq_len": 64, "ffn": {"expansion_factor": 4.0}}
    write_config(tmp_path / "c.yaml", init_from="w.safetensors", model=model)
    with pytest.raises(UserError) as refusal:
        run_config("c.yaml")
    message = str(refusal.value)
    assert "missing final_norm.weight [48]" in message
    assert "unexpected extra [3]" in message
    for layer in (0, 1):
        assert (
            f"layers.{layer}.ffn.up_proj.weight has shape [128, 48], the config says [192, 48]"
            in message
        )


def test_a_directory_with_a_run_is_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "c.yaml", num_steps=2, val_data=...)
    run_config("c.yaml")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    with pytest.raises(UserError, match=r"holds a run already \(final\).*--resume auto"):
        run_config("c.yaml")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_another_runs_directory_is_not_taken_over_by_a_resume(tmp_path, monkeypatch):
    """Its tags would be counted, and deleted, as the resumed run's own."""
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "theirs"):
        write_config(tmp_path / f"{name}.yaml", num_steps=2, val_data=..., checkpoint_dir=name)
        run_config(f"{name}.yaml")
    with pytest.raises(UserError, match=r"checkpoint_dir='theirs' holds a run already"):
        run_config("theirs.yaml", "mine/final")
    foreign = tmp_path / "foreign/best"
    foreign.parent.mkdir()
    for ending in (".safetensors", ".config.json"):  # as the PyTorch trainer leaves them
        foreign.with_suffix(ending).write_text("{}")
    write_config(tmp_path / "c.yaml", checkpoint_dir="foreign")
    with pytest.raises(UserError, match=r"checkpoint_dir='foreign' holds a run already \(best\)"):
        run_config("c.yaml", "auto")


def test_a_non_finite_step_stops_is_written_down_and_replayed(tmp_path):
    """A learning rate of 1e30 makes the second step's gradients overflow: exit code 3."""
    changes = {"optimizer": {"lr": 1e30}, "scheduler": {"warmup_steps": 0, "type": "constant"}}
    changes |= {"save_every": 1, "gradient_accumulation_steps": 2, "val_data": ...}
    config = write_config(tmp_path / "c.yaml", **changes)
    done = command("llm-train", config, cwd=tmp_path)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    message = done.stderr[done.stderr.index("llm-train: ") :]
    assert message.startswith("llm-train: step 2: the loss or the gradient norm is not finite")
    assert "the newest checkpoint is out/step0000001" in message
    assert "shard_0000" in message
    assert "rows" in message
    out = tmp_path / "out"
    assert [line["step"] for line in metrics(out)] == [1]
    assert [path.name for path in out.glob("*.config.json")] == ["step0000001.config.json"]
    weights = load_file(out / "step0000001.safetensors")
    assert all(np.isfinite(value).all() for value in weights.values())

    folder = out / "nonfinite-step2"
    stream = TokenStream(TINY["train_data"], seq_len=16, seed=42)
    batch = stream.windows(np.arange(16, 32)).reshape(2, 8, 17)
    np.testing.assert_array_equal(np.load(folder / "tokens.npy"), batch)
    assert load_file(folder / "weights.safetensors").keys() == weights.keys()
    report = json.loads((folder / "report.json").read_text())
    layers = ["tok_emb", "embeddings", "layers.0", "layers.1"]
    assert list(report["activations"]) == layers
    assert list(report["gradients"]) == ["tok_emb", "layers.0", "layers.1", "final_norm"]
    assert all(len(norms) == 2 for norms in report["activations"].values())
    assert "nan" in report["gradients"]["layers.0"]
    before = sorted(tmp_path.rglob("*"))
    script, *args = report["replay"].split()
    assert f"{report['replay']}\n" in message
    again = command(script, *args, cwd=tmp_path)
    assert again.returncode == 3
    assert f"loss {report['loss']}  gradient norm {report['grad_norm']}  (now)" in again.stderr
    assert (
        f"loss {report['loss']}  gradient norm {report['grad_norm']}  (in the run)" in again.stderr
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_fifty_overflows_of_float16_in_a_row_stop(tmp_path, monkeypatch):
    """Finite losses whose gradients are too large for float16 at any scale."""
    monkeypatch.chdir(tmp_path)
    weights = load_file(REFERENCE / "training/adamw-cosine/init.safetensors")
    weights["final_norm.weight"] *= 1e4
    weights["layers.1.ffn.up_proj.weight"] *= 0  # the layer says nothing, whatever down_proj is
    weights["layers.1.ffn.down_proj.weight"] *= 5e5
    save_file(weights, "w.safetensors")
    model = {"d_model": 48, "max_seq_len": 64}
    changes = {"num_steps": 60, "save_every": 20, "val_data": ..., "init_from": "w.safetensors"}
    write_config(tmp_path / "c.yaml", dtype="float16", model=model, **changes)
    with pytest.raises(NonFinite, match="step 50: the gradients overflowed float16 50 times"):
        run_config("c.yaml")
    lines = metrics(tmp_path / "out")
    assert [line["step"] for line in lines] == list(range(1, 50))
    assert {line["train/grad_norm"] for line in lines} == {None}
    assert lines[-1]["train/loss_scale"] == 1
    assert np.isfinite([line["train/loss"] for line in lines]).all()
    saved = load_file("out/step0000040.safetensors")
    for key, value in weights.items():
        np.testing.assert_array_equal(saved[key], value, err_msg=key)
    assert replay("c.yaml", "out/nonfinite-step50") == 3
    write_config(tmp_path / "c.yaml", dtype="bfloat16", model=model, **changes)
    with pytest.raises(UserError, match="is not of a run with dtype='bfloat16'"):
        replay("c.yaml", "out/nonfinite-step50")
    with pytest.raises(UserError, match=r"has no tokens.npy"):
        replay("c.yaml", "out")


def test_a_damaged_validation_shard_costs_no_step(tmp_path, monkeypatch):
    """It is found when it is read, at step 2: what was trained is committed all the same."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TINY["val_data"], "val")
    for path in (tmp_path / "val").iterdir():
        data, groups = bytearray(path.read_bytes()), pq.read_metadata(path)
        for group in map(groups.row_group, range(groups.num_row_groups)):
            for chunk in map(group.column, range(group.num_columns)):
                if chunk.path_in_schema.startswith("tokens"):  # what is read at the start is whole
                    start, size = chunk.data_page_offset, chunk.total_compressed_size
                    if chunk.has_dictionary_page:
                        start = min(start, chunk.dictionary_page_offset)
                    data[start : start + size] = bytes(size)
        path.write_bytes(data)
    write_config(tmp_path / "c.yaml", val_data="val", eval_every=2)
    with pytest.raises(UserError, match="val/"):
        run_config("c.yaml")
    assert [path.name for path in (tmp_path / "out").glob("*.config.json")] == [
        "step0000002.config.json"
    ]
    write_config(tmp_path / "c.yaml", eval_every=2)
    assert run_config("c.yaml", "auto") == 0


def test_val_data_and_shards_of_every_kind_of_path(tmp_path, monkeypatch):
    """A folder, a file, a glob and a list of them are the same data."""
    monkeypatch.chdir(tmp_path)
    folder = TINY["train_data"]
    losses = []
    for number, paths in enumerate(
        [folder, f"{folder}/*.parquet", [f"{folder}/*0.parquet", f"{folder}/*[1-9].parquet"]]
    ):
        write_config(
            tmp_path / "c.yaml", num_steps=2, train_data=paths, checkpoint_dir=f"out{number}"
        )
        run_config("c.yaml")
        losses.append([line.get("train/loss") for line in metrics(tmp_path / f"out{number}")])
    assert losses[0] == losses[1] == losses[2]


def test_a_shard_that_was_replaced_between_stop_and_resume_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = Path(shutil.copytree(TINY["train_data"], "data"))
    changes = {"train_data": "data", "val_data": ...}
    write_config(tmp_path / "c.yaml", num_steps=1, **changes)
    run_config("c.yaml")
    path = min(data.iterdir())
    table = pq.read_table(path)
    docs = [doc[::-1] for doc in table.column("tokens").to_pylist()]
    pq.write_table(table.set_column(table.schema.get_field_index("tokens"), "tokens", [docs]), path)
    write_config(tmp_path / "c.yaml", num_steps=2, **changes)
    change = rf"train_data: changed: {path.name} \(other contents\)"
    with pytest.raises(UserError, match=change):
        run_config("c.yaml", "auto")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_init_from_16_bit_weights(tmp_path, monkeypatch, dtype):
    """Weights of another trainer in 16 bits become float32, exactly."""
    monkeypatch.chdir(tmp_path)
    weights = load_file(REFERENCE / "training/adamw-cosine/init.safetensors")
    half = {key: value.astype(dtype) for key, value in weights.items() if key != "lm_head.weight"}
    save_file(half, "half.safetensors")
    model = {"d_model": 48, "max_seq_len": 64}
    changes = {"num_steps": 1, "val_data": ..., "scheduler": {"warmup_steps": 5}}  # a rate of 0
    write_config(tmp_path / "c.yaml", init_from="half.safetensors", model=model, **changes)
    run_config("c.yaml")
    final = load_file("out/final.safetensors")
    for key, value in half.items():
        np.testing.assert_array_equal(final[key], value.astype(np.float32))
