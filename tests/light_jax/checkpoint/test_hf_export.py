"""`hf_export`: `best` and `final` as folders for transformers, beside the training."""

from __future__ import annotations

import os

import torch
from safetensors.torch import load_file
from tiny_runs import train_command, write_config

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything of Hugging Face is imported


def test_best_and_final_are_folders_for_transformers(tmp_path):
    from transformers import AutoModelForCausalLM

    from light_llm.checkpoint import load_transformer

    config = write_config(tmp_path / "c.yaml", hf_export=True, num_steps=4, eval_every=2)
    done = train_command(config)
    assert done.returncode == 0, done.stderr
    assert "hf_export" not in done.stderr
    out = tmp_path / "out"
    assert sorted(path.name for path in (out / "hf").iterdir()) == ["best", "final"]
    for tag in ("best", "final"):
        ours, theirs = (
            load_transformer(out / tag),
            AutoModelForCausalLM.from_pretrained(out / "hf" / tag, trust_remote_code=False),
        )
        assert type(theirs).__name__ == "LlamaForCausalLM"
        tokens = torch.arange(12).reshape(1, 12)
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), rtol=0, atol=2e-5)
        embedding = load_file(out / "hf" / tag / "model.safetensors")["model.embed_tokens.weight"]
        assert torch.equal(embedding, load_file(out / f"{tag}.safetensors")["tok_emb.weight"])


def test_an_export_that_fails_is_told_and_costs_nothing(tmp_path):
    (tmp_path / "out/hf/final").mkdir(parents=True)
    mine = tmp_path / "out/hf/final/notes.txt"
    mine.write_text("not an export")
    done = train_command(
        write_config(tmp_path / "c.yaml", hf_export=True, val_data=..., num_steps=2)
    )
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stderr.splitlines() if "hf_export" in line]
    assert line.startswith("warning: hf_export of 'final' failed: ")
    assert "is not empty" in line
    assert mine.read_text() == "not an export"
    assert (tmp_path / "out/final.safetensors").is_file()
