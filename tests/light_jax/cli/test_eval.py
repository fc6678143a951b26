"""llm-eval as a person uses it: its numbers against sums by hand, its refusals, its exit codes."""

from __future__ import annotations

import json
import math
import os
import pty
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from in_process import call
from safetensors.numpy import load_file, save_file
from tiny_runs import BIN, command, devices, metrics, write_config

from light_jax.cli.eval import main
from light_jax.data import TokenStream
from light_jax.evaluation import text
from light_jax.training.loop import run_config
from light_llm import load_tokenizer, load_transformer
from light_llm.checkpoint.reading import seal, tag_of
from light_llm.cli import preprocess
from light_llm.tokenizer import train_bpe, train_char

POEM = "Füße, 世界 und 👩‍👩‍👧: der Text Nummer {} hat {} Zeichen, die mehr als ein Byte sind.\n"
SEQ_LEN, SEED = 16, 42


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Text, its shards data/{train,val}, and a run on them in out/, which evaluates all of val."""
    path = tmp_path_factory.mktemp("eval")
    (path / "text").mkdir()
    for number in range(40):
        (path / f"text/{number:02}.txt").write_text(POEM.format(number, 7 * number) * 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        flags = ["--input", "text", "--output", "data", "--vocab-size", 300, "--val-fraction", 0.3]
        assert call(preprocess.main, *flags).exit_code == 0
        config = write_config(
            path / "tiny.yaml",
            train_data="data/train",
            val_data="data/val",
            eval_steps=1000,
            num_steps=3,
            seed=SEED,
            mesh={"data": 1},
            model={"vocab_size": 300},
        )
        assert run_config(config) == 0
    return path


@pytest.fixture(autouse=True)
def there(folder, monkeypatch):
    monkeypatch.chdir(folder)


def evaluated(*args):
    done = call(main, *args, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def windows_of(path: str, seq_len: int = SEQ_LEN) -> np.ndarray:
    stream = TokenStream(path, seq_len=seq_len, seed=SEED)
    return stream.windows(np.arange(len(stream)))


def losses_by_hand(prefix: str, tokens_WS: np.ndarray) -> np.ndarray:
    """-log p of each token that a window predicts, float64 [W, T], from PyTorch's logits."""
    with torch.no_grad():
        logits_WTV = load_transformer(prefix)(torch.tensor(tokens_WS[:, :-1])).double().numpy()
    log_z_WT = np.log(np.exp(logits_WTV).sum(-1))
    return log_z_WT - np.take_along_axis(logits_WTV, tokens_WS[:, 1:, None], -1)[..., 0]


def test_the_loss_is_the_mean_over_all_windows_of_each_path_and_of_all(folder):
    done = command(
        "llm-eval", "out/final", "--data", "data/train", "data/val", "--json", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    losses = [losses_by_hand("out/final", windows_of(path)) for path in ("data/train", "data/val")]
    for source, path, loss_WT in zip(
        report["per_source"], ("data/train", "data/val"), losses, strict=True
    ):
        assert (source["path"], source["tokens"]) == (path, loss_WT.size)
        assert source["loss"] == pytest.approx(loss_WT.mean(), abs=1e-5)
        assert source["perplexity"] == pytest.approx(math.exp(source["loss"]))
    every = np.concatenate([loss_WT.reshape(-1) for loss_WT in losses])
    assert report["tokens"] == every.size
    assert report["loss"] == pytest.approx(every.mean(), abs=1e-5)
    assert (report["checkpoint"], report["step"]) == ("out/final", 3)
    assert len(losses[1]) % 8, "the last batch is to be a part of one"


def test_the_checkpoint_stands_before_the_data_or_at_the_end():
    flags = ["--data", "data/train", "data/val", "--batch-size", 7]
    first = evaluated("out/final", *flags)
    assert evaluated(*flags, "out/final") == first
    assert evaluated(*flags[:3], "out/final", *flags[3:]) == first
    assert "data/val: there is no checkpoint" in call(main, *flags).stderr


def test_it_is_the_validation_loss_that_training_logged(folder):
    logged = [line["val/loss"] for line in metrics(folder / "out") if "val/loss" in line]
    report = evaluated("out/final", "--data", "data/val")
    assert report["loss"] == pytest.approx(logged[-1], abs=1e-6)


@pytest.mark.parametrize("flags", [[], ["--batch-size", 5], ["--seq-len", 31]])
def test_both_frameworks_give_the_same(flags):
    args = ["out/final", "--data", "data/val", *flags]
    ours, theirs = evaluated(*args), evaluated(*args, "--backend", "torch")
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=2e-5)
    assert ours["tokens"] == theirs["tokens"]
    assert ours["bits_per_byte"] == pytest.approx(theirs["bits_per_byte"], abs=2e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_are_near_float32_in_both_frameworks(dtype):
    exact = evaluated("out/final", "--data", "data/val")["loss"]
    for backend in ("jax", "torch"):
        args = ["--data", "data/val", "--dtype", dtype, "--backend", backend]
        assert 0 < abs(evaluated("out/final", *args)["loss"] - exact) < 5e-3


def test_eight_devices_give_what_one_gives(folder):
    """The mesh of the config covers one device; eight share the batch."""
    args = ("llm-eval", "out/final", "--data", "data/val", "--json")
    done = command(*args, cwd=folder, env=devices(8))
    assert done.returncode == 0, done.stderr
    eight = json.loads(done.stdout)
    assert eight["backend"] == "jax on 8 × cpu"
    assert eight["loss"] == pytest.approx(evaluated(*args[1:-1])["loss"], abs=1e-5)


def test_bits_per_byte_are_those_of_the_text_that_is_predicted():
    report = evaluated("out/final", "--data", "data/val", "data/train")
    tokenizer, sizes = load_tokenizer("data/tokenizer"), []
    for source in report["per_source"]:
        tokens_WS = windows_of(source["path"])
        ids = tokens_WS[:, 1:].reshape(-1).tolist()  # windows follow each other
        sizes.append(len(tokenizer.decode(ids).rstrip("\N{REPLACEMENT CHARACTER}").encode()))
        bits = source["loss"] * source["tokens"] / math.log(2)
        assert source["bits_per_byte"] == pytest.approx(bits / sizes[-1], rel=1e-9)
    bits = report["loss"] * report["tokens"] / math.log(2)
    assert report["bits_per_byte"] == pytest.approx(bits / sum(sizes), rel=1e-9)


@pytest.mark.parametrize("longest", [17, 40])
def test_a_long_text_without_an_end_is_cut_between_characters(longest, monkeypatch):
    monkeypatch.setattr(text, "LONGEST", longest)
    whole = POEM.format(1, 2) * 5
    tokenizer = train_bpe([], 257)
    ids = np.array(tokenizer.encode(whole))  # a byte each
    pieces = list(text.documents(np.array_split(ids, 7), tokenizer))
    assert "".join(tokenizer.decode(piece.tolist()) for piece in pieces) == whole
    assert len(pieces) >= len(ids) // longest
    at = len(whole[: whole.index("ß")].encode()) + 1  # in the midst of a character
    cut = text.documents([ids[:at]], tokenizer)
    assert b"".join(tokenizer.decode(piece.tolist()).encode() for piece in cut) == b"F\xc3\xbc"


def test_bits_per_byte_are_unknown_where_the_text_is(tmp_path):
    """Characters that a tokenizer does not know have no bytes; neither have shards without one."""
    ids = [*range(2, 20), 0, *range(2, 20)]
    shutil.copytree("out", tmp_path / "out")
    for name in ("known", "unknown"):
        (tmp_path / name).mkdir()
        docs = pa.array([[i for i in ids if i or name == "unknown"]], pa.list_(pa.int32()))
        pq.write_table(pa.table({"tokens": docs}), tmp_path / name / "0.parquet")
    args = [tmp_path / "out/final", "--data", tmp_path / "known", tmp_path / "unknown"]
    done = call(main, *args, "--json")
    assert json.loads(done.stdout)["bits_per_byte"] is None
    assert "tokenizer_path is not set, and there is none beside" in done.stderr
    train_char(["abcdefghijklmnopqrstuvwxyz"]).save(tmp_path / "out/tokenizer")
    done = call(main, *args, "--json")
    known, unknown = json.loads(done.stdout)["per_source"]
    assert known["bits_per_byte"] == pytest.approx(known["loss"] / math.log(2))  # a byte a token
    assert unknown["bits_per_byte"] is None
    assert "holds text that the tokenizer" in done.stderr


def test_the_table():
    done = call(main, "out", "--data", "data/train", "data/val")
    assert done.exit_code == 0, done.output
    report = evaluated("out", "--data", "data/train", "data/val")
    lines = done.stdout.splitlines()
    assert lines[0] == f"checkpoint  out/best, step {report['step']}"
    assert lines[4].split() == ["data", "tokens", "loss", "perplexity", "bits/byte"]
    assert [line.split()[0] for line in lines[5:]] == ["data/train", "data/val", "together"]
    assert lines[-1].split()[1:3] == [f"{report['tokens']:,}", f"{report['loss']:.4f}"]
    assert len({len(line) for line in lines[4:]}) == 1, "columns end together"
    assert done.stderr == ""


def test_a_folder_stands_for_its_best_or_final_or_newest_tag(tmp_path):
    out = tmp_path / "out"
    shutil.copytree("out", out)
    assert tag_of(out) == tag_of(f"{out}/best.safetensors") == out / "best"
    (out / "best.config.json").unlink()
    assert tag_of(out) == tag_of(f"{out}/") == out / "final"
    (out / "final.config.json").rename(out / "step0000001.config.json")
    (out / "final.safetensors").rename(out / "step0000001.safetensors")
    assert tag_of(out) == out / "step0000003"
    config = json.loads((out / "step0000001.config.json").read_text())
    config["checkpoint"] |= {"step": 1, "generation": 2}  # a resume from an earlier step
    (out / "step0000001.config.json").write_text(json.dumps(seal(config)))
    assert tag_of(out) == out / "step0000001"
    assert tag_of(tmp_path / "no") == tmp_path / "no"


def test_weights_that_are_not_finite_exit_with_3(tmp_path):
    shutil.copy("out/final.config.json", tmp_path / "nan.config.json")
    weights = load_file("out/final.safetensors")
    weights["final_norm.weight"][0] = np.nan
    save_file(weights, tmp_path / "nan.safetensors")
    config = json.loads((tmp_path / "nan.config.json").read_text())
    (tmp_path / "nan.config.json").write_text(json.dumps({"model": config["model"]}))
    done = call(main, tmp_path / "nan", "--data", "data/val", "--json", "--seq-len", SEQ_LEN)
    assert done.exit_code == 3, done.output
    report = json.loads(done.stdout)
    assert (report["loss"], report["perplexity"], report["step"]) == (None, None, None)


BAD = {
    "no data": (["out"], "there is nothing to evaluate on; give --data PATH"),
    "no such data": (["out", "--data", "nowhere"], "--data='nowhere' does not exist"),
    "no such checkpoint": (["out/worst", "--data", "data/val"], "there is no checkpoint 'worst'"),
    "a folder without one": (["data", "--data", "data/val"], "there is no checkpoint 'data'"),
    "too few tokens": (["out", "--data", "few"], "hold no window of seq_len + 1 = 17"),
    "an id too large": (["out", "--data", "large"], "token id 300 is outside 0..299"),
    "a larger tokenizer": (["out", "--data", "other/val"], "a tokenizer of 301 ids"),
    "too long": (["out", "--data", "data/val", "--seq-len", 33], "model.max_seq_len=32"),
    "no batch": (["out", "--data", "data/val", "--batch-size", 0], "--batch-size=0 must be 1"),
    "no backend": (["out", "--data", "data/val", "--backend", "tf"], "--backend='tf' must be jax"),
    "no dtype": (["out", "--data", "data/val", "--dtype", "int8"], "--dtype='int8' must be"),
    "damaged weights": (["cut", "--data", "data/val"], "bytes where"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_exit_code_2(case, folder):
    for name, ids in {"few": range(16), "large": range(280, 301)}.items():
        (folder / name).mkdir(exist_ok=True)
        docs = pa.array([list(ids)], pa.list_(pa.int32()))
        pq.write_table(pa.table({"tokens": docs}), folder / name / "0.parquet")
    shutil.copytree("data", "other", dirs_exist_ok=True)
    manifest = json.loads(Path("data/manifest.json").read_text())
    manifest["tokenizer"]["vocab_size"] = 301
    del manifest["crc32"]
    Path("other/manifest.json").write_text(json.dumps(manifest))
    shutil.copy("out/final.config.json", "cut.config.json")
    Path("cut.safetensors").write_bytes(Path("out/final.safetensors").read_bytes()[:-4])
    args, message = BAD[case]
    done = call(main, *args)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert done.stderr.startswith("llm-eval: ")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(folder):
    args = ("llm-eval", "out", "--data", "data/val", "--batch-size", 9)
    done = command(*args, cwd=folder, env=devices(8))
    assert done.returncode == 2
    assert done.stderr == ("llm-eval: --batch-size=9 does not divide over 8 devices; use 8 or 16\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(number, folder):
    """A shell says 130 or 143. On a terminal it says what it does, and until then it lives."""
    ours, theirs = pty.openpty()
    args = [BIN / "llm-eval", "out", "--data", "data/val"]
    with subprocess.Popen(args, cwd=folder, stderr=theirs, stdout=subprocess.PIPE) as running:
        os.close(theirs)
        assert "starting" in os.read(ours, 100).decode()
        running.send_signal(number)
        assert running.wait(20) == -number
        assert running.stdout is not None
        assert running.stdout.read() == b""
    os.close(ours)
