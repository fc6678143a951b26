"""A GGUF file holds our model for llama.cpp; what llama.cpp would compute otherwise is refused.

llama.cpp itself is not here: as_llama_cpp.py computes from the file alone what its code does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from as_llama_cpp import Model
from in_process import call
from tiny_runs import BIN, command
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from written import checkpoint, config, weights

from conversion.mapping import table
from light_jax.cli.convert import main
from light_llm.checkpoint.loading import load_transformer
from light_llm.formats.gguf_model import gguf_name, paired
from light_llm.formats.gguf_vocabulary import CONTROL, NORMAL, SPLITS, UNUSED
from light_llm.tokenizer import SubwordTokenizer, train_char

LLAMA3 = {"type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}
MODELS = {
    "llama": {},
    "head_dim": {"attention": {"num_heads": 2, "num_kv_heads": 1, "head_dim": 24}},
    "biases": {
        "tie_embeddings": False,
        "attention": {"bias": True},
        "ffn": {"bias": True, "ffn_dim": 40},
        "positional": {"rope_scaling": 3.0, "rope_base": 300.0},
        "norm": {"eps": 1e-3},
    },
    "llama3": {"positional": {"rope_scaling": LLAMA3}},
    "wide window": {"attention": {"mask_type": "sliding_window", "window_size": 47}},
    "qwen2": {"attention": {"qkv_bias": True}},
    "qwen3": {"attention": {"qk_norm": True, "head_dim": 16}, "tie_embeddings": False},
}


def convert(prefix: Path, out: Path, *flags: object):
    return call(main, "gguf", prefix, out, *flags)


def converted(prefix: Path, *flags: object) -> Model:
    out = prefix.parent / "out.gguf"
    done = convert(prefix, out, *flags)
    assert done.exit_code == 0, done.output
    return Model(out)


def refused(prefix: Path, *flags: object) -> str:
    """The message; no file was written."""
    before = sorted(prefix.parent.iterdir())
    done = convert(prefix, prefix.parent / "out.gguf", *flags)
    assert done.exit_code == 2, done.output
    assert sorted(prefix.parent.iterdir()) == before
    return done.stderr


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_llama_cpp_computes_our_logits(changes, tmp_path):
    cfg = config(**changes)
    prefix = checkpoint(tmp_path, cfg)
    model = converted(prefix, "--dtype", "float32", "--no-tokenizer")
    tokens_T = np.random.default_rng(1).integers(cfg.vocab_size, size=cfg.max_seq_len)
    with torch.no_grad():
        ours_TV = load_transformer(prefix)(torch.from_numpy(tokens_T)[None])[0].numpy()
    assert np.abs(ours_TV).max() > 1
    np.testing.assert_allclose(model.logits(tokens_T), ours_TV, rtol=0, atol=2e-5)


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_every_tensor_is_there_bit_for_bit(changes, tmp_path):
    cfg = config(**changes)
    model = converted(checkpoint(tmp_path, cfg), "--dtype", "float32", "--no-tokenizer")
    left = dict(model.tensors)
    for key, ours in weights(cfg).items():
        heads = {"q_proj": cfg.attention.num_heads, "k_proj": cfg.attention.num_kv_heads}
        count = heads.get(key.split(".")[-2]) if model.architecture == "llama" else None
        theirs = left.pop(gguf_name(key))
        if count:  # pairs back to halves
            halves = theirs.reshape(count, -1, 2, *theirs.shape[1:]).swapaxes(1, 2)
            theirs = halves.reshape(theirs.shape)
        np.testing.assert_array_equal(theirs, ours, err_msg=key)
    assert left.keys() == ({"rope_freqs.weight"} if "llama3" in str(changes) else set())


def test_rows_of_two_heads_in_pairs():
    rows = np.array([0, 1, 2, 3, 10, 11, 12, 13])
    assert paired(rows, 2).tolist() == [0, 2, 1, 3, 10, 12, 11, 13]


def test_the_keys_describe_the_model(tmp_path):
    model = converted(checkpoint(tmp_path / "my-run", config(**MODELS["biases"])), "--no-tokenizer")
    assert model.keys["general.name"] == "my-run best"
    assert model.keys["general.file_type"] == 1
    assert model.keys["tokenizer.ggml.model"] == "none"
    assert (model["context_length"], model["embedding_length"]) == (48, 32)
    assert (model["vocab_size"], model["feed_forward_length"]) == (300, 40)
    assert (model["rope.freq_base"], model["rope.scaling.factor"]) == (300.0, 3.0)


def test_half_the_bits_keep_norms_and_biases(tmp_path):
    cfg = config(**MODELS["biases"])
    model = converted(checkpoint(tmp_path, cfg), "--no-tokenizer")
    kinds = {entry.key: model.types[gguf_name(entry.key)] for entry in table(cfg)}
    for entry in table(cfg):
        assert kinds[entry.key] == ("F32" if len(entry.shape) == 1 else "F16")
    tok_emb = weights(cfg)["tok_emb.weight"]
    np.testing.assert_array_equal(model.tensors["token_embd.weight"], tok_emb.astype(np.float16))


def test_eight_bits_are_within_half_a_step(tmp_path):
    cfg = config(ffn={"ffn_dim": 40})
    prefix, out = checkpoint(tmp_path, cfg), tmp_path / "out.gguf"
    done = convert(prefix, out, "--dtype", "q8_0", "--no-tokenizer")
    assert "2 are float16" in done.stdout  # the down_proj of two layers has rows of 40
    model = Model(out)
    assert model.types["blk.0.ffn_down.weight"] == "F16"
    assert model.types["blk.0.ffn_up.weight"] == "Q8_0"
    ours = weights(cfg)["layers.1.ffn.up_proj.weight"].reshape(-1, 32)
    theirs = model.tensors["blk.1.ffn_up.weight"].reshape(-1, 32)
    step = np.abs(ours).max(-1, keepdims=True) / 127
    assert (np.abs(theirs - ours) <= 0.51 * step + 127 * step * 2**-11).all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"positional": {"encoding": "alibi"}}, "positional.encoding='alibi'"),
        ({"attention": {"variant": "complex", "num_kv_heads": 4}}, "attention.variant='complex'"),
        ({"norm": {"type": "layernorm"}, "parallel_layers": True}, "parallel_layers=True"),
        ({"logit_softcap": 30.0}, "logit_softcap=30.0"),
        ({"ffn": {"variant": "geglu"}}, "ffn.variant='geglu'"),
        ({"attention": {"mask_type": "sliding_window", "window_size": 46}}, "window_size=46"),
        ({"attention": {"window_pattern": [9, None]}}, "attention.window_pattern=[9, None]"),
        ({"attention": {"qkv_bias": True}, "positional": {"rope_scaling": LLAMA3}}, "llama3"),
        ({"attention": {"qk_norm": True, "bias": True}}, "attention.bias=True"),
        ({"attention": {"qkv_bias": True, "head_dim": 16}}, "head_dim=64 unlike d_model=32"),
        ({"attention": {"qk_norm": True, "qkv_bias": True}}, "attention.qkv_bias"),
    ],
)
def test_a_model_that_llama_cpp_lacks_is_refused(changes, named, tmp_path):
    assert named in refused(checkpoint(tmp_path, config(**changes)), "--no-tokenizer")


def test_numbers_beyond_float16_are_refused(tmp_path):
    name = "layers.0.ffn.up_proj.weight"
    large = weights(config())[name] * 1e6
    prefix = checkpoint(tmp_path, config(), **{name: large})
    assert f"{name} has numbers up to" in refused(prefix, "--no-tokenizer")
    converted(prefix, "--no-tokenizer", "--dtype", "float32")


def test_a_file_that_is_there_is_replaced_on_demand_only(tmp_path):
    prefix, out = checkpoint(tmp_path, config()), tmp_path / "out.gguf"
    out.write_text("precious")
    assert "replace it with --overwrite" in refused(prefix, "--no-tokenizer")
    assert out.read_text() == "precious"
    converted(prefix, "--no-tokenizer", "--overwrite")


def test_requests_that_cannot_be_met(tmp_path):
    prefix = checkpoint(tmp_path, config())
    assert "--dtype='q4' must be" in refused(prefix, "--dtype", "q4")
    assert "--no-tokenizer" in refused(prefix)  # the config names no tokenizer
    assert "contradicts" in refused(prefix, "--no-tokenizer", "--tokenizer", "gpt2")
    assert "must end in .gguf" in convert(prefix, tmp_path / "out.bin").stderr
    assert "there is no folder" in convert(prefix, tmp_path / "no/out.gguf").stderr
    (tmp_path / "folder.gguf").mkdir()
    assert "is a folder" in convert(prefix, tmp_path / "folder.gguf", "--overwrite").stderr
    assert "no checkpoint" in convert(tmp_path / "none", tmp_path / "out.gguf").stderr
    data = (tmp_path / "best.safetensors").read_bytes()
    (tmp_path / "best.safetensors").write_bytes(data[:-100])
    assert "not a whole safetensors file" in refused(prefix, "--no-tokenizer")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    prefix = checkpoint(tmp_path, config())
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install 'light-llm-jax[gguf]'" in refused(prefix, "--no-tokenizer")


def test_a_stopped_conversion_leaves_nothing(tmp_path):
    cfg = config(vocab_size=300_000, d_model=128, num_layers=1)
    prefix, hidden = checkpoint(tmp_path, cfg), tmp_path / ".out.gguf.tmp"
    before = sorted(tmp_path.iterdir())
    flags = ["--no-tokenizer", "--dtype", "q8_0"]
    arguments = [BIN / "llm-convert", "gguf", prefix, tmp_path / "out.gguf", *flags]
    with subprocess.Popen(arguments, env=os.environ) as process:
        deadline = time.monotonic() + 60
        while not hidden.exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_says_what_it_wrote(tmp_path, saved_bpe):
    documents = {"document_mask": True, "document_end": 0}
    checkpoint(tmp_path, config(attention=documents), saved_bpe)
    done = command("llm-convert", "gguf", "best", "out.gguf", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("out.gguf: llama, 20 tensors, float16, ")
    assert "attention.document_mask is not known to llama.cpp: a text of one" in done.stdout


# The tokenizer


def test_the_vocabulary_is_the_tokenizers(tmp_path, bpe, saved_bpe):
    size = bpe.vocab_size + 2
    model = converted(checkpoint(tmp_path, config(vocab_size=size), saved_bpe))
    key = {name.removeprefix("tokenizer.ggml."): value for name, value in model.keys.items()}
    vocab = bpe.backend.get_vocab()
    assert (key["model"], key["pre"]) == ("gpt2", "gpt-2")
    assert key["tokens"][:-2] == sorted(vocab, key=vocab.__getitem__)
    assert key["tokens"][-2:] == [f"[PAD{size - 2}]", f"[PAD{size - 1}]"]
    assert key["token_type"] == [CONTROL, *[NORMAL] * (bpe.vocab_size - 1), UNUSED, UNUSED]
    assert (key["eos_token_id"], key["bos_token_id"], key["add_bos_token"]) == (0, 0, False)
    assert not key["add_eos_token"]
    # the merges make every token that is neither a byte nor special
    made = {merge.replace(" ", "") for merge in key["merges"]}
    assert made == {token for token in vocab if len(token) > 1} - {"<|endoftext|>"}


def variant(bpe: SubwordTokenizer, folder: Path, bos: str | None = None, **parts) -> Path:
    """The tokenizer with other parts, saved."""
    backend = Tokenizer.from_str(bpe.backend.to_str())
    for name, part in parts.items():
        if name == "ignore_merges":
            backend.model.ignore_merges = part
        else:
            setattr(backend, name, part)
    if bos is not None:
        backend.add_special_tokens([bos])
    SubwordTokenizer(backend, "<|endoftext|>", bos).save(folder)
    return folder


def split(regex: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


REGEX = {name: regex for regex, name in SPLITS.items()}


def test_the_patterns_of_llama3_and_qwen2_have_names(tmp_path, bpe):
    llama3 = variant(
        bpe, tmp_path / "a", "<s>", pre_tokenizer=split(REGEX["llama-bpe"]), ignore_merges=True
    )
    qwen2 = variant(
        bpe, tmp_path / "b", pre_tokenizer=split(REGEX["qwen2"]), normalizer=normalizers.NFC()
    )
    for folder, pre, add_bos in ((llama3, "llama-bpe", True), (qwen2, "qwen2", False)):
        model = converted(checkpoint(tmp_path, config(vocab_size=400), folder), "--overwrite")
        assert model.keys["tokenizer.ggml.pre"] == pre
        assert model.keys["tokenizer.ggml.add_bos_token"] is add_bos


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"pre_tokenizer": split(r"\w+")}, "its pre_tokenizer is"),
        ({"pre_tokenizer": pre_tokenizers.ByteLevel()}, "its pre_tokenizer is"),
        ({"pre_tokenizer": split(REGEX["llama-bpe"])}, "ignore_merges is False"),
        ({"normalizer": normalizers.Lowercase()}, "its normalizer is"),
    ],
    ids=["regex", "space", "merges", "normalizer"],
)
def test_a_tokenizer_that_llama_cpp_lacks_is_refused(parts, named, tmp_path, bpe):
    folder = variant(bpe, tmp_path / "tokenizer", **parts)
    prefix = checkpoint(tmp_path, config(), folder)
    message = refused(prefix)
    assert named in message
    assert "--no-tokenizer" in message
    converted(prefix, "--no-tokenizer")


def test_other_tokenizers_are_refused(tmp_path, saved_bpe):
    train_char(["abc"]).save(tmp_path / "chars")
    prefix = checkpoint(tmp_path, config(), tmp_path / "chars")
    assert "CharTokenizer, not a byte-level BPE" in refused(prefix)
    small = checkpoint(tmp_path, config(vocab_size=258))
    assert "more than the model's vocab_size=258" in refused(small, "--tokenizer", saved_bpe)
