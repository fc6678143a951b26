"""A checkpoint, exported and loaded by transformers, computes and writes what it did before."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
import torch
from forked import Process
from hf_exports import FAMILIES, OWN, convert, exported, loaded, write_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_runs import BIN, REFERENCE, write_config
from torch_cases import DOCUMENTS, lively, tiny, tokens_for
from transformers import AutoTokenizer

from light_llm.generate import generate
from light_llm.hf.check import quietly
from light_llm.sampling import Sampling
from light_llm.tokenizer import CharTokenizer

TORCH_TAG = REFERENCE / "training/adamw-cosine/step0000020"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_same_logits(ours, theirs, within: float = 2e-5) -> None:
    tokens = tokens_for(ours.cfg, 2, ours.cfg.max_seq_len)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), rtol=0, atol=within)


def assert_same_text(ours, theirs, count: int = 50) -> None:
    prompt = tokens_for(ours.cfg, 1, 9)
    wanted = list(generate(ours, prompt[0].tolist(), Sampling(count, temperature=0)))
    got = theirs.generate(prompt, max_new_tokens=count, do_sample=False)
    assert got[0, 9:].tolist() == wanted


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_of_transformers_computes_the_same(tmp_path, name):
    class_name, cfg = FAMILIES[name]
    ours, theirs = exported(tmp_path, cfg)
    assert type(theirs).__module__.startswith("transformers.models.")
    assert type(theirs).__name__ == class_name
    assert_same_logits(ours, theirs)
    assert_same_text(ours, theirs)


def test_a_family_gets_a_model_that_masked_documents_and_the_command_says_so(tmp_path):
    cfg = tiny(attention=DOCUMENTS)
    done = convert(write_checkpoint(tmp_path / "run/best", lively(cfg)), tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("wrote")
    assert "LlamaForCausalLM" in done.stdout
    assert "attention.document_mask is not known to LlamaForCausalLM" in done.stdout


@pytest.mark.parametrize("name", OWN)
def test_any_other_model_becomes_our_class(tmp_path, name):
    ours, theirs = exported(tmp_path, OWN[name])
    assert type(theirs).__name__ == "LightLLMForCausalLM"
    assert_same_logits(ours, theirs)
    assert_same_text(ours, theirs)


def test_the_command_says_what_no_family_has(tmp_path):
    cfg = tiny(positional={"encoding": "alibi"}, norm={"placement": "sandwich"})
    done = convert(write_checkpoint(tmp_path / "best", lively(cfg)), tmp_path / "out")
    assert "positional.encoding='alibi', norm.placement='sandwich'" in done.stdout


def test_a_tag_of_the_pytorch_trainer_into_a_path_with_spaces(tmp_path):
    out = tmp_path / "my models" / "number 1"
    done = convert(TORCH_TAG, out)
    assert done.exit_code == 0, done.output
    assert "logits as the checkpoint's within " in done.stdout.splitlines()[-1]
    tensors = load_file(out / "model.safetensors")
    assert "lm_head.weight" not in tensors  # it is tied
    assert "step | 20" in (out / "README.md").read_text()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()}
    assert len(modes) == 1  # safetensors alone lets only the user read


def test_a_run_of_llm_train_brings_its_figures(tmp_path):
    from light_jax.training.loop import run_config

    assert run_config(write_config(tmp_path / "c.yaml", checkpoint_dir=str(tmp_path / "run"))) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    (loss,) = [line["val/loss"] for line in lines if line["step"] == 6 and "val/loss" in line]
    assert convert(tmp_path / "run/final", tmp_path / "out").exit_code == 0
    card = (tmp_path / "out/README.md").read_text()
    for row in ("step | 6", f"tokens seen | {6 * 8 * 16}", f"validation loss | {loss:.4f}"):
        assert f"| {row} |" in card
    assert str(tmp_path) not in card  # paths of a machine are nobody's business


def test_shards_are_as_small_as_asked_and_hold_everything_once(tmp_path):
    ours, theirs = exported(tmp_path, tiny(num_layers=4), "--max-shard-size", "5KB")
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 5
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    found = {}
    for shard in shards:
        with safe_open(shard, "pt") as file:
            assert file.metadata()["format"] == "pt"
            assert not found.keys() & set(file.keys())
            found |= dict.fromkeys(file.keys(), shard.name)
            assert sum(file.get_tensor(key).nbytes for key in file.keys()) <= 5000  # noqa: SIM118
    assert found == index["weight_map"]
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounded_weights_are_those_of_the_rounded_model(tmp_path, dtype):
    ours, theirs = exported(tmp_path, tiny(), "--dtype", dtype)
    kinds = {tensor.dtype for tensor in load_file(tmp_path / "out/model.safetensors").values()}
    assert kinds == {getattr(torch, dtype)}
    assert_same_logits(ours.to(getattr(torch, dtype)).float(), theirs)
    assert loaded(tmp_path / "out", dtype="auto").dtype == getattr(torch, dtype)


def test_a_large_vocabulary(tmp_path):
    ours, theirs = exported(tmp_path, tiny(vocab_size=50257, tie_embeddings=False))
    assert_same_logits(ours, theirs)


def test_the_tokenizer_gives_the_same_ids_and_ends(tmp_path, saved_bpe, bpe):
    model = lively(tiny(vocab_size=bpe.vocab_size + 3))
    tag = write_checkpoint(tmp_path / "best", model, tokenizer_path=str(saved_bpe))
    assert convert(tag, tmp_path / "out").exit_code == 0
    assert_same_ids(tmp_path / "out", bpe)
    original, copy = (path / "tokenizer.json" for path in (saved_bpe, tmp_path / "out"))
    assert json.loads(copy.read_text()) == json.loads(original.read_text())
    theirs = loaded(tmp_path / "out")
    assert theirs.generation_config.eos_token_id == theirs.config.eos_token_id == bpe.eos_id


@pytest.mark.parametrize(
    "known", ["abc \n", "".join(map(chr, range(32, 126))) + "\n\téß世👩\u200d"]
)
def test_a_character_tokenizer_is_converted(tmp_path, known):
    ours = CharTokenizer(known)
    ours.save(tmp_path / "chars")
    tag = write_checkpoint(tmp_path / "best", lively(tiny(vocab_size=200)))
    done = convert(tag, tmp_path / "out", "--tokenizer", tmp_path / "chars")
    assert done.exit_code == 0, done.output
    assert_same_ids(tmp_path / "out", ours)


def assert_same_ids(folder: Path, ours) -> None:
    with quietly():
        theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for text in ("a cab\nin <|endoftext|>", "Grüße, 世界! 👩‍👩‍👧 \ufffd", "  x\t\r\n "):
        ids = ours.encode(text)
        assert theirs.encode(text) == ids
        assert theirs.decode(ids) == ours.decode(ids)
    assert theirs.eos_token_id == ours.eos_id


def test_a_tokenizer_that_is_not_qwens_is_not_put_beside_a_qwen2(tmp_path, saved_bpe, bpe):
    """Versions 5 of transformers would cut texts by other rules there."""
    cfg = tiny(vocab_size=bpe.vocab_size, attention={"qkv_bias": True})
    ours, theirs = exported(tmp_path, cfg, "--tokenizer", saved_bpe)
    assert type(theirs).__name__ == "LlamaForCausalLM"
    assert_same_logits(ours, theirs)
    assert_same_ids(tmp_path / "out", bpe)


def test_a_character_tokenizer_that_cannot_be_converted_is_left_out(tmp_path):
    CharTokenizer("ab\ufffd").save(tmp_path / "chars")
    tag = write_checkpoint(
        tmp_path / "best", lively(tiny()), tokenizer_path=str(tmp_path / "chars")
    )
    done = convert(tag, tmp_path / "out")
    assert done.exit_code == 0
    assert "no tokenizer is written: the character tokenizer knows U+FFFD" in done.stdout
    assert not (tmp_path / "out/tokenizer.json").exists()


def test_an_earlier_export_is_replaced_and_nothing_else(tmp_path):
    tag, out = write_checkpoint(tmp_path / "best", lively(tiny())), tmp_path / "out"
    out.mkdir()
    assert convert(tag, out).exit_code == 0  # an empty folder
    assert convert(tag, out, "--max-shard-size", "5KB").exit_code == 0
    assert not (out / "model.safetensors").exists()
    assert names(tmp_path) == ["best.config.json", "best.safetensors", "out"]

    def refused(reason: str) -> None:
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        done = convert(tag, out)
        assert (done.exit_code, done.stdout) == (2, "")
        assert reason in done.stderr
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        assert names(tmp_path) == ["best.config.json", "best.safetensors", "out"]

    (out / "notes.txt").write_text("mine")
    refused("notes.txt in it is not of the export")
    (out / "notes.txt").unlink()
    card = (out / "README.md").read_text()
    (out / "README.md").write_text(card + "I wrote more.\n")
    refused("README.md in it was changed since the export")
    shutil.rmtree(out)
    assert convert(tag, out).exit_code == 0
    loaded(out).save_pretrained(out)  # as after training it further
    refused("was saved by something else")
    shutil.rmtree(out)
    out.mkdir()
    (out / "config.json").write_text("{}")
    refused("it is not an earlier export")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--dtype", "int8"], "--dtype=int8 must be float32, bfloat16, float16"),
        (["--max-shard-size", "many"], "--max-shard-size=many must be a positive number with KB"),
        (["--push", "no/such/name"], "--push=no/such/name: is not the name of a model"),
        (["--tokenizer", "x", "--no-tokenizer"], "contradict each other"),
        (["--tokenizer", "./no/such"], "--no-tokenizer"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(tmp_path, flags, message):
    done = convert(write_checkpoint(tmp_path / "best", lively(tiny())), tmp_path / "o", *flags)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert names(tmp_path) == ["best.config.json", "best.safetensors"]


def test_a_folder_of_transformers_is_sent_to_the_import(tmp_path):
    made = tmp_path / "a b"
    assert convert(write_checkpoint(tmp_path / "best", lively(tiny())), made).exit_code == 0
    for source, message in [
        (made, f"run `llm-convert from-hf '{made}' NAME` first"),
        (made / "model.safetensors", f"name its folder, {made}"),
    ]:
        done = convert(source, tmp_path / "o")
        assert (done.exit_code, done.stdout) == (2, "")
        assert message in done.stderr
    assert names(tmp_path) == ["a b", "best.config.json", "best.safetensors"]


def test_weights_that_a_dtype_cannot_hold_are_refused(tmp_path):
    tag, out = write_checkpoint(tmp_path / "best", lively(tiny())), tmp_path / "out"
    for value, reason in [(1e5, "use bfloat16"), (math.nan, "holds NaN or infinity")]:
        tensors = load_file(f"{tag}.safetensors")
        tensors["final_norm.weight"][3] = value
        save_file(tensors, f"{tag}.safetensors")
        done = convert(tag, out, "--dtype", "float16")
        assert done.exit_code == 2
        assert "final_norm.weight" in done.stderr
        assert reason in done.stderr
        assert names(tmp_path) == ["best.config.json", "best.safetensors"]


def test_a_folder_that_computes_something_else_is_not_published(tmp_path, monkeypatch):
    """An export with a wrong key would be one."""
    from light_llm.hf import export

    right = export.hf_config
    monkeypatch.setattr(export, "hf_config", lambda *args: right(*args) | {"rope_theta": 5000.0})
    done = convert(write_checkpoint(tmp_path / "best", lively(tiny())), tmp_path / "out")
    assert done.exit_code == 2
    assert "differ from the checkpoint's by" in done.stderr
    assert names(tmp_path) == ["best.config.json", "best.safetensors"]


def test_a_signal_leaves_nothing_and_what_a_kill_left_is_taken_over(tmp_path):
    tag, out = write_checkpoint(tmp_path / "best", lively(tiny(num_layers=24))), tmp_path / "out"
    stage = tmp_path / ".out.writing"
    mark = stage / ".made-by-llm-convert"
    for sent, left in [(signal.SIGKILL, True), (signal.SIGTERM, False), (signal.SIGINT, False)]:
        begun = time.time_ns()
        command = [BIN / "llm-convert", "hf", tag, out]
        process = Process(command, env=dict(os.environ), stderr=subprocess.PIPE)
        while not (is_newer(mark, begun) and (stage / "model.safetensors").exists()):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        process.send_signal(sent)
        process.communicate(timeout=60)
        assert process.returncode == (-sent if left else 128 + sent)
        assert stage.exists() == left
        assert not out.exists()
    assert names(tmp_path) == ["best.config.json", "best.safetensors"]


def is_newer(path: Path, time_ns: int) -> bool:
    return path.exists() and path.stat().st_mtime_ns > time_ns
