"""An ONNX file: onnxruntime's logits are PyTorch's, for every batch and length."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from in_process import call
from written import checkpoint, config, weights

from light_jax.cli.convert import main
from light_llm.checkpoint.loading import load_transformer

# Each variant of each part once.
MODELS = {
    "rope-gqa-pattern-swiglu": {
        "positional": {"rope_scaling": 2.0},
        "attention": {"window_pattern": [5, None]},
    },
    "alibi-mqa-window": {
        "positional": {"encoding": "alibi"},
        "attention": {
            "variant": "mqa",
            "num_kv_heads": 1,
            "mask_type": "sliding_window",
            "window_size": 5,
        },
        "ffn": {"variant": "geglu"},
        "norm": {"placement": "post"},
    },
    "complex-layernorm-sandwich": {
        "attention": {"variant": "complex", "num_kv_heads": 4, "bias": True},
        "norm": {"type": "layernorm", "placement": "sandwich"},
    },
    "learned-bidirectional-mlp": {
        "positional": {"encoding": "learned"},
        "attention": {
            "variant": "mha",
            "num_kv_heads": 4,
            "mask_type": "bidirectional",
            "qk_norm": True,
        },
        "ffn": {"variant": "mlp", "activation": "gelu"},
        "parallel_layers": True,
    },
    "sinusoidal-documents-capped": {
        "positional": {"encoding": "sinusoidal"},
        "attention": {"document_mask": True, "document_end": 3},
        "num_layers": 1,
        "logit_softcap": 5.0,
    },
}


def convert(prefix: Path, *flags: object):
    return call(main, "onnx", prefix, prefix.parent / "out.onnx", *flags)


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_onnxruntime_computes_our_logits(changes, tmp_path):
    cfg = config(**changes)
    prefix = checkpoint(tmp_path, cfg)
    done = convert(prefix)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    assert "logits within" in done.stdout
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx")
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("tokens", "tensor(int64)", ["batch", "length"])
    ]
    assert [i.name for i in session.get_outputs()] == ["logits"]
    model = load_transformer(prefix)
    for shape in ((1, 1), (2, 11), (5, cfg.max_seq_len)):
        tokens = np.random.default_rng(1).integers(cfg.vocab_size, size=shape)
        with torch.no_grad():
            ours = model(torch.from_numpy(tokens)).numpy()
        assert np.abs(ours).max() > 1
        (theirs,) = session.run(None, {"tokens": tokens})
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)


def refused(prefix: Path, *flags: object) -> str:
    """The message; no file was written."""
    before = sorted(prefix.parent.iterdir())
    done = convert(prefix, *flags)
    assert done.exit_code == 2, done.output
    assert sorted(prefix.parent.iterdir()) == before
    return done.stderr


def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch):
    prefix = checkpoint(tmp_path, config())
    huge = checkpoint(tmp_path / "huge", config())
    text = (tmp_path / "huge/best.config.json").read_text()
    huge.with_name("best.config.json").write_text(text.replace(": 300", ": 30000000"))
    assert "holds less than 2 GiB" in refused(huge)
    (tmp_path / "out.onnx").write_text("precious")
    assert "replace it with --overwrite" in refused(prefix)
    assert (tmp_path / "out.onnx").read_text() == "precious"
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    message = refused(prefix, "--overwrite")
    assert "needs onnxscript; pip install 'light-llm-jax[torch,onnx]'" in message


def test_logits_that_are_not_ours_are_not_published(tmp_path):
    """Weights that are not finite give none that can be compared."""
    name = "final_norm.weight"
    spoilt = np.full_like(weights(config())[name], np.nan)
    assert "logits differ" in refused(checkpoint(tmp_path, config(), **{name: spoilt}))
